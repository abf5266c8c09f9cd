"""Define the recipe of a training, and make its optimizer and learning-rate schedule."""

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
    """How to train; the keys of `backbone` and `ics` in a study.

    Args:
        epochs: passes over the data; may be fractional.
        batch_size: samples per step.
        lr: the highest learning rate.
        weight_decay: L2 penalty, as the optimizer applies it.
        momentum: momentum of SGD.
        schedule: one of SCHEDULES.
        milestones: epochs after which lr is multiplied by `gamma`.
        gamma: see `milestones`.
        compute: device and precision.
        optimizer: one of OPTIMIZERS.
        compile: use torch.compile for the forward pass; "auto" = only for a long training (`worth_compiling`).
        cuda_graph: on a GPU, capture a step and replay it (`ztw.training.cuda_graph`); then `compile` is ignored.
        frozen_dropout: keep the dropout of a frozen backbone on while ICs are trained, as in ZTW's released code.
            Dropout draws from torch's global generator.
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
    """Return SGD with momentum or Adam.

    Raises:
        ZtwError: for another name.
    """
    parameters = list(parameters)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    if recipe.optimizer == "adam":
        # Five times as fast on a CPU, but PyTorch's fused Adam ignores strides: a channels_last weight would be
        # updated with the gradients of other elements
        fused = all(weight.is_contiguous() for weight in parameters)
        return torch.optim.Adam(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
    raise unknown("optimizer", recipe.optimizer, OPTIMIZERS)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, samples: int) -> LRScheduler:
    """Return the learning-rate schedule, to be stepped once per batch; samples: number in an epoch.

    Raises:
        ZtwError: if the schedule is not in SCHEDULES.
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
    """Return the number of batches in an epoch, without a last batch of one sample: BatchNorm cannot train on it."""
    full, rest = divmod(samples, recipe.batch_size)
    return full + (rest > 1 or samples == 1)


def total_steps(recipe: Recipe, samples: int) -> int:
    """Return the number of batches in the training, at least one."""
    return max(1, round(recipe.epochs * steps_per_epoch(recipe, samples)))
