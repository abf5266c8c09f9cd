"""How a training goes: its recipe, and the optimizer, the schedule and the number of steps that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from ztw.device import ON_CPU, Compute
from ztw.errors import unknown

SCHEDULES = ("one_cycle", "milestones")
OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class Recipe:
    """How to train: what the config's `backbone` and `ics` sections say.

    epochs: passes over the data, the last may be a part of one; batch_size in images; lr: the highest
    learning rate; schedule: one of SCHEDULES; milestones: epochs after which lr is multiplied by gamma;
    compute: where, and in which precision; optimizer: one of OPTIMIZERS, momentum is of SGD; compile: whether
    torch.compile builds the forward and backward pass first, "auto" = for a backbone where it is
    `worth_compiling` and works; cuda_graph: whether a GPU gets a step captured once and replayed
    (`ztw.training.cuda_graph`), nothing is compiled then; frozen_dropout: whether the dropout of a frozen backbone
    stays on while its ICs are trained, as in ZTW's released code, drawn from torch's global generator.
    """

    epochs: float
    batch_size: int
    lr: float
    weight_decay: float
    momentum: float = 0.9
    schedule: str = "milestones"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    compute: Compute = ON_CPU
    optimizer: str = "sgd"
    compile: bool | Literal["auto"] = False
    cuda_graph: bool = False
    frozen_dropout: bool = False


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum or Adam, as the recipe says; raises ZtwError for another name."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, recipe.lr, weight_decay=recipe.weight_decay)
    raise unknown("optimizer", recipe.optimizer, OPTIMIZERS)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, samples: int) -> LRScheduler:
    """The learning-rate schedule, stepped once a batch; samples: of an epoch.

    Raises ZtwError for a name that is not in SCHEDULES.
    """
    if recipe.schedule == "one_cycle":
        total = total_steps(recipe, samples) + 1
        rising = 0.2 if total > 10 else 0.3  # torch divides by rising * total - 1
        return OneCycleLR(optimizer, recipe.lr, total_steps=total, pct_start=rising, cycle_momentum=False)
    if recipe.schedule == "milestones":
        steps = steps_per_epoch(recipe, samples)
        at = [round(epoch * steps) for epoch in recipe.milestones]
        return MultiStepLR(optimizer, at, recipe.gamma)
    raise unknown("schedule", recipe.schedule, SCHEDULES)


def steps_per_epoch(recipe: Recipe, samples: int) -> int:
    """Batches of an epoch; a last one of a single image is left out, which BatchNorm cannot use."""
    whole, rest = divmod(samples, recipe.batch_size)
    return whole + (rest > 1 or samples == 1)


def total_steps(recipe: Recipe, samples: int) -> int:
    """Batches of the training, at least one."""
    return max(1, round(recipe.epochs * steps_per_epoch(recipe, samples)))
