"""Train the backbone alone, then ICs on the frozen backbone (separate training: SDN 2019, ZTW 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ztw.batch import Batch
from ztw.data.dataset import Data
from ztw.errors import ZtwError
from ztw.models.backbone import Backbone
from ztw.models.network import EarlyExitNetwork
from ztw.progress import Report
from ztw.training.compiling import compiled, worth_compiling
from ztw.training.distillation import Distillation, distillation_loss
from ztw.training.loop import History, Step, Task, cross_entropy_step, freeze, run_epochs
from ztw.training.recipe import Recipe, make_optimizer
from ztw.training.resume import Checkpoints


def train_backbone(
    backbone: Backbone,
    data: Data,
    recipe: Recipe,
    seed: int,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
    teacher: tuple[Backbone, Distillation] | None = None,
) -> History:
    """Train a backbone in place, and set it to eval mode.

    Args:
        data: training samples, on the backbone's device.
        seed: of order and augmentation.
        checkpoints: saves and resumes the training.
        teacher: a trained network on the same device, and how to learn from it; None = learn from the labels only.

    Returns:
        The history.

    Raises:
        ZtwError: if the loss is not finite at the end of an epoch.
    """
    forward = compiled(backbone, recipe, worth_compiling(recipe, len(data)), report)
    step = cross_entropy_step(forward, recipe.compute)
    if teacher is not None:
        step = _taught_step(forward, recipe, *teacher)
    backbone.train()
    task = Task(["backbone"], step, backbone, make_optimizer(backbone.parameters(), recipe))
    (history,) = run_epochs(task, data, recipe, seed, report, checkpoints)
    backbone.eval()
    return history


def _taught_step(
    forward: Callable[[Any], Tensor], recipe: Recipe, teacher: Backbone, how: Distillation
) -> Step:
    """Return the step of a training that learns from the predictions of a frozen teacher, on the same batches."""
    freeze(teacher)
    taught = compiled(teacher, recipe)

    def step(inputs: Batch, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        with recipe.compute.autocast():
            with torch.no_grad():
                target = taught(inputs)
            logits = forward(inputs)
        loss = distillation_loss(logits, target, labels, how)
        return loss[None], (logits.argmax(-1) == labels).sum()[None]

    return step


def train_separately(
    networks: Sequence[EarlyExitNetwork],
    data: Data,
    recipe: Recipe,
    seed: int,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[History]:
    """Train the ICs of several networks on one frozen backbone together, and set the networks to eval mode.

    Each network gets the weights that it would get alone, because SGD and Adam update each parameter on its own. Its
    loss is the sum of its ICs' cross-entropies, without the backbone's exit (ZTW 2021). Other arguments as in
    `train_backbone`.

    Args:
        networks: networks that share one Backbone object, on the device of `data`.

    Returns:
        The history of each network; its accuracy is that of the last IC.

    Raises:
        ZtwError: if the networks do not share a backbone, or a loss is not finite.
    """
    backbone = networks[0].backbone
    if any(network.backbone is not backbone for network in networks):
        raise ZtwError("train_separately: the networks must share one backbone")
    for network in networks:
        network.train()
    freeze(backbone)
    if recipe.frozen_dropout:
        for part in backbone.modules():
            if isinstance(part, nn.Dropout):
                part.train()
    heads = nn.ModuleList([network.heads for network in networks])
    heads.requires_grad_(True)  # an earlier training may have frozen them
    names = [f"ICs {network.connection.name}" for network in networks]
    task = Task(names, _ics_step(networks, recipe), heads, make_optimizer(heads.parameters(), recipe))
    histories = run_epochs(task, data, recipe, seed, report, checkpoints)
    for network in networks:
        network.eval()
    return histories


def _ics_step(networks: Sequence[EarlyExitNetwork], recipe: Recipe) -> Step:
    """Return a step with one loss per network; the backbone's features are computed once for all networks."""

    def all_logits(inputs: Batch) -> list[list[Tensor]]:
        with torch.no_grad():
            features = list(networks[0].backbone.features(inputs))
        return [network.ic_logits(features) for network in networks]

    forward = compiled(all_logits, recipe)

    def step(inputs: Batch, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        with recipe.compute.autocast():
            outputs = forward(inputs)
        losses = [torch.stack([F.cross_entropy(ic, labels) for ic in output]).sum() for output in outputs]
        right = [(output[-1].argmax(-1) == labels).sum() for output in outputs]
        return torch.stack(losses), torch.stack(right)

    return step
