"""Exit after exit, all before it frozen (Scardapane et al. 2020, cascaded inference 2019)."""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F
from torch import Tensor, nn

from ztw.data.dataset import Data
from ztw.device import autocast
from ztw.models.network import EarlyExitNetwork
from ztw.progress import Report
from ztw.training.loop import History, Recipe, freeze, make_optimizer, run_epochs


def _phase(recipe: Recipe, exits: int) -> Recipe:
    """The part of a recipe that one of `exits` phases gets."""
    milestones = tuple(epoch / exits for epoch in recipe.milestones)
    return dataclasses.replace(recipe, epochs=recipe.epochs / exits, milestones=milestones)


def train_layer_wise(
    network: EarlyExitNetwork, data: Data, recipe: Recipe, seed: int, report: Report | None = None
) -> History:
    """Train exit after exit in place: the blocks since the last exit and the head, all before them frozen.

    The recipe's epochs are shared out over the K phases, the schedule with them (Scardapane et al. 2020;
    cascaded inference 2019 fine-tunes so from a trained trunk). The history holds the epochs of all
    phases. Raises ZtwError when a loss is not finite.
    """
    freeze(network)
    history: History = []
    for exit, segment in enumerate(network.segments()):
        head = network.heads[exit] if exit < len(network.heads) else network.backbone.classifier
        trained = nn.ModuleList([*segment, head])
        trained.requires_grad_(True).train()
        optimizer = make_optimizer(trained.parameters(), recipe)

        def step(images: Tensor, labels: Tensor, exit: int = exit) -> tuple[Tensor, Tensor]:
            with autocast(images.device, recipe.precision):
                output = network.logits_at(exit, images)
            return F.cross_entropy(output, labels)[None], (output.argmax(-1) == labels).sum()[None]

        name = f"exit {exit + 1}/{network.exits}"
        (part,) = run_epochs(
            step, [name], data, optimizer, _phase(recipe, network.exits), seed + exit, report
        )
        history += [{**row, "epoch": len(history) + row["epoch"]} for row in part]
        freeze(trained)
    return history
