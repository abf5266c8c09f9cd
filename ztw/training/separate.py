"""A backbone alone, then its internal classifiers (ICs) on the frozen backbone (SDN 2019, ZTW 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ztw.data.dataset import Data
from ztw.device import autocast
from ztw.errors import ZtwError
from ztw.models.backbone import Backbone
from ztw.models.network import EarlyExitNetwork
from ztw.progress import Report
from ztw.training.loop import (
    WORTH_COMPILING,
    History,
    Recipe,
    _batch_sizes,
    _total_steps,
    compiled,
    freeze,
    make_optimizer,
    run_epochs,
)


def train_backbone(
    backbone: Backbone, data: Data, recipe: Recipe, seed: int, report: Report | None = None
) -> History:
    """Train a backbone in place; ends in eval mode.

    data: the training part, on the backbone's device; seed: of the order and the augmentation.
    Raises ZtwError when the loss is not finite at the end of an epoch.
    """

    steps = _total_steps(recipe, len(_batch_sizes(len(data), recipe.batch_size)))
    forward = compiled(backbone, recipe, steps >= WORTH_COMPILING, report)

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(images.device, recipe.precision):
            logits = forward(images)
        return F.cross_entropy(logits, labels)[None], (logits.argmax(-1) == labels).sum()[None]

    backbone.train()
    optimizer = make_optimizer(backbone.parameters(), recipe)
    (history,) = run_epochs(step, ["backbone"], data, optimizer, recipe, seed, report)
    backbone.eval()
    return history


def train_ics(
    networks: Sequence[EarlyExitNetwork],
    data: Data,
    recipe: Recipe,
    seed: int,
    report: Report | None = None,
) -> list[History]:
    """Train the ICs of several networks on ONE frozen backbone, in one pass over it; end in eval mode.

    networks: sharing one Backbone object, on the device of `data`. Each is trained as it would be
    alone (Adam works parameter by parameter): loss = plain sum of its ICs' cross-entropies, the
    backbone's own exit left out (ZTW 2021). A history's accuracy is that of the last IC.
    Raises ZtwError when the networks do not share a backbone or a loss is not finite.
    """
    backbone = networks[0].backbone
    if any(network.backbone is not backbone for network in networks):
        raise ZtwError("train_ics: the networks must share one backbone")
    for network in networks:
        network.train()
    freeze(backbone)
    parameters = [parameter for network in networks for parameter in network.heads.parameters()]

    def all_logits(images: Tensor) -> list[list[Tensor]]:
        with torch.no_grad():
            features = list(backbone.features(images))
        return [network.ic_logits(features) for network in networks]

    forward = compiled(all_logits, recipe)

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(images.device, recipe.precision):
            outputs = forward(images)
        losses = [torch.stack([F.cross_entropy(ic, labels) for ic in output]).sum() for output in outputs]
        right = [(output[-1].argmax(-1) == labels).sum() for output in outputs]
        return torch.stack(losses), torch.stack(right)

    names = [f"ICs {network.ics}" for network in networks]
    optimizer = make_optimizer(parameters, recipe)
    histories = run_epochs(step, names, data, optimizer, recipe, seed, report)
    for network in networks:
        network.eval()
    return histories
