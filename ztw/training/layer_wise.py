"""Train exit after exit, with earlier parts frozen (layer-wise training, Scardapane et al. 2020)."""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import nn

from ztw.data.dataset import Data
from ztw.models.network import EarlyExitNetwork
from ztw.progress import Report
from ztw.training.loop import History, Task, cross_entropy_step, freeze, run_epochs
from ztw.training.recipe import Recipe, make_optimizer
from ztw.training.resume import Checkpoints


def train_layer_wise(
    network: EarlyExitNetwork,
    data: Data,
    recipe: Recipe,
    seed: int,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Train exit after exit in place, and set the network to eval mode.

    A phase trains the head of one exit and the blocks since the previous exit; earlier parts are frozen. The epochs and
    the schedule are divided among the K phases. The history covers all phases. Arguments as in
    `ztw.training.separate.train_backbone`.

    Raises:
        ZtwError: if a loss is not finite.
    """
    freeze(network)
    history: History = []
    phase = _phase(recipe, network.exits)
    for exit, trained in enumerate(_parts(network)):
        trained.requires_grad_(True).train()
        name = f"exit {exit + 1}/{network.exits}"
        step = cross_entropy_step(partial(network.logits_at, exit), recipe.compute)
        task = Task([name], step, trained, make_optimizer(trained.parameters(), phase))
        kept = checkpoints.phase(f"exit-{exit + 1}") if checkpoints else None
        (rows,) = run_epochs(task, data, phase, seed + exit, report, kept)
        history += [{**row, "epoch": len(history) + row["epoch"]} for row in rows]
        freeze(trained)
    return history


def _phase(recipe: Recipe, exits: int) -> Recipe:
    milestones = tuple(epoch / exits for epoch in recipe.milestones)
    return dataclasses.replace(recipe, epochs=recipe.epochs / exits, milestones=milestones)


def _parts(network: EarlyExitNetwork) -> list[nn.ModuleList]:
    """Return the modules of each phase: the stages since the previous exit, and the head of this exit."""
    heads = [*network.heads, network.backbone.classifier]
    return [nn.ModuleList([*stages, head]) for stages, head in zip(network.segments(), heads, strict=True)]
