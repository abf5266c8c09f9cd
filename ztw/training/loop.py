"""The loop all trainings share: recipe, optimizer, schedule, epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from ztw.data.dataset import Data
from ztw.device import autocast
from ztw.errors import ZtwError, unknown
from ztw.progress import Progress, Report

SCHEDULES = ("one_cycle", "milestones")
OPTIMIZERS = ("sgd", "adam")


@dataclass(frozen=True)
class Recipe:
    """How to train: what the config's `backbone` and `ics` sections say.

    epochs: passes over the data, the last may be a part of one; batch_size in images; lr: the highest
    learning rate; schedule: one of SCHEDULES; milestones: epochs after which lr is multiplied by gamma;
    precision: "fp32" or "bf16"; optimizer: one of OPTIMIZERS, momentum is of SGD; compile: whether
    torch.compile builds the forward and backward pass first, "auto" = for a backbone where it is
    `worth_compiling` and works.
    """

    epochs: float
    batch_size: int
    lr: float
    weight_decay: float
    momentum: float = 0.9
    schedule: str = "milestones"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    precision: str = "fp32"
    optimizer: str = "sgd"
    compile: bool | Literal["auto"] = False


# A row an epoch: epoch, loss, accuracy, lr, seconds, finished (Unix time).
History = list[dict[str, float]]
# images (N, C, H, W), labels (N,) -> losses (M,) with gradient, right answers (M,), one per network
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """What is trained.

    names: what each of the M losses belongs to, for messages; step: computes them for a batch; optimizer: of
    the weights that they train.
    """

    names: Sequence[str]
    step: Step
    optimizer: torch.optim.Optimizer


def cross_entropy_step(forward: Callable[[Tensor], Tensor], precision: str) -> Step:
    """The step of a single loss; forward: images (N, C, H, W) -> logits (N, classes)."""

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(images.device, precision):
            logits = forward(images)
        return F.cross_entropy(logits, labels)[None], (logits.argmax(-1) == labels).sum()[None]

    return step


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


def run_epochs(
    task: Task, data: Data, recipe: Recipe, seed: int, report: Report | None = None
) -> list[History]:
    """The epochs of a training; seed: of the order and the augmentation.

    Returns a history for each of the task's losses. Raises ZtwError when one is not finite at the end of an
    epoch.
    """
    steps, left = steps_per_epoch(recipe, len(data)), total_steps(recipe, len(data))
    schedule = make_schedule(task.optimizer, recipe, len(data))
    generator = torch.Generator().manual_seed(seed)
    progress = Progress(left, report)
    histories: list[History] = [[] for _ in task.names]
    for epoch in range(1, -(-left // steps) + 1):
        started, lr = time.monotonic(), task.optimizer.param_groups[0]["lr"]
        in_order = data.batches(recipe.batch_size, generator, augmented=True)
        for sums, seen in run_epoch(task, islice(in_order, left), schedule):
            progress.step(partial(_status, epoch, recipe, sums, seen))
        left -= steps
        means = (sums / seen).tolist()
        ended = {"seconds": round(time.monotonic() - started, 3), "finished": round(time.time(), 3)}
        for name, history, loss, accuracy in zip(task.names, histories, *means, strict=True):
            _check_finite(name, loss, epoch, recipe)
            history.append({"epoch": epoch, "loss": loss, "accuracy": accuracy, "lr": lr, **ended})
    return histories


def run_epoch(
    task: Task, in_order: Iterable[tuple[Tensor, Tensor]], schedule: LRScheduler
) -> Iterator[tuple[Tensor, int]]:
    """One epoch, a batch (images, labels) at a time.

    Yields after each step of the optimizer the sums since the epoch began: of the losses and of the right
    answers (2, M), over the samples, and their number.
    """
    sums, seen = torch.zeros(2, len(task.names)), 0
    for images, labels in in_order:
        losses, right = task.step(images, labels)
        task.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        task.optimizer.step()
        schedule.step()
        seen += len(labels)
        sums = sums.to(losses.device) + torch.stack([losses.detach() * len(labels), right.float()])
        yield sums, seen


def _status(epoch: int, recipe: Recipe, sums: Tensor, seen: int) -> str:
    loss, right = (sums / seen).mean(1).tolist()
    return f"epoch {epoch}/{recipe.epochs:g}  loss {loss:.3f}  accuracy {100 * right:.1f} %"


def _check_finite(name: str, loss: float, epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise ZtwError(
            f"{name}: the loss is {loss} in epoch {epoch}; lower lr (now {recipe.lr})"
            " or set precision to fp32"
        )


def steps_per_epoch(recipe: Recipe, samples: int) -> int:
    """Batches of an epoch; a last one of a single image is left out, which BatchNorm cannot use."""
    whole, rest = divmod(samples, recipe.batch_size)
    return whole + (rest > 1 or samples == 1)


def total_steps(recipe: Recipe, samples: int) -> int:
    """Batches of the training, at least one."""
    return max(1, round(recipe.epochs * steps_per_epoch(recipe, samples)))


def freeze(module: nn.Module) -> None:
    """No gradients, and eval mode: BatchNorm's statistics and dropout stand still."""
    module.eval()
    module.requires_grad_(False)
