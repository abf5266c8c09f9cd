"""Exit after exit, all before it frozen (Scardapane et al. 2020)."""

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
    """Train exit after exit in place, one phase each: the blocks since the last exit and the head.

    What belongs to earlier exits is frozen then, and so it stays. The recipe's epochs are shared out over
    the K phases, the schedule with them (Scardapane et al. 2020). Ends in eval mode; the history holds the
    epochs of all phases. Raises ZtwError when a loss is not finite.
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
    """The part of a recipe that one of `exits` phases gets."""
    milestones = tuple(epoch / exits for epoch in recipe.milestones)
    return dataclasses.replace(recipe, epochs=recipe.epochs / exits, milestones=milestones)


def _parts(network: EarlyExitNetwork) -> list[nn.ModuleList]:
    """What each phase trains: the stages since the exit before, and what computes the exit."""
    heads = [*network.heads, network.backbone.classifier]
    return [nn.ModuleList([*stages, head]) for stages, head in zip(network.segments(), heads, strict=True)]
