"""The loop all trainings share: recipe, optimizer, schedule, epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from ztw.data.dataset import Data, batches
from ztw.errors import ZtwError, unknown
from ztw.progress import Progress, Report

SCHEDULES = ("one_cycle", "milestones")
OPTIMIZERS = ("sgd", "adam")
# Steps from which torch.compile earns back the minute it takes: measured on two CPU cores without AMX, where
# it takes 5 to 11 % off a backbone's step (`make bench`). Counted, not timed: the same study compiles the
# same trainings.
WORTH_COMPILING = 4000


@dataclass(frozen=True)
class Recipe:
    """How to train: what the config's `backbone` and `ics` sections say.

    epochs: passes over the data, the last may be a part of one; batch_size in images;
    lr: the highest learning rate; milestones: epochs after which it is
    multiplied by gamma; optimizer: "sgd" (with momentum) or "adam"; compile: whether
    torch.compile builds the forward and backward pass first, "auto" = for backbones that train
    WORTH_COMPILING steps or more, where it can.
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


def compiled(
    function: Callable[[Tensor], Any], recipe: Recipe, pays: bool = False, report: Report | None = None
) -> Callable[[Tensor], Any]:
    """A function of a batch of images, compiled where the recipe says so; pays: what its "auto" means here.

    Only for full batches: the last, smaller one would have it compiled again for any size, and slower.
    Where compiling fails "auto" goes on without, after a line to `report`; otherwise ZtwError at the first
    call.
    """
    auto = recipe.compile == "auto"
    if not (pays if auto else recipe.compile):
        return function
    fast = torch.compile(function)

    def call(images: Tensor) -> Any:
        nonlocal fast
        if len(images) != recipe.batch_size:
            return function(images)
        try:
            return fast(images)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = f"compile: failed ({' '.join(str(error).split())[:160]}); it needs a C++ compiler"
            if not auto:
                raise ZtwError(f"{reason}, or set it to false") from error
            if report is not None:
                report(f"{reason}; training goes on without")
            fast = function
            return function(images)

    return call


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum or Adam, as the recipe says; raises ZtwError for another name."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, recipe.lr, weight_decay=recipe.weight_decay)
    raise unknown("optimizer", recipe.optimizer, OPTIMIZERS)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    """The learning-rate schedule, stepped once a batch; steps: batches in an epoch."""
    if recipe.schedule == "one_cycle":
        total = _total_steps(recipe, steps) + 1
        rising = 0.2 if total > 10 else 0.3  # torch divides by rising * total - 1
        return OneCycleLR(optimizer, recipe.lr, total_steps=total, pct_start=rising, cycle_momentum=False)
    if recipe.schedule == "milestones":
        at = [round(epoch * steps) for epoch in recipe.milestones]
        return MultiStepLR(optimizer, at, recipe.gamma)
    raise unknown("schedule", recipe.schedule, SCHEDULES)


def run_epochs(
    step: Step,
    names: Sequence[str],
    data: Data,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    seed: int,
    report: Report | None,
) -> list[History]:
    """The loop all trainings share; names: what each of the M losses belongs to."""
    steps = sum(1 for size in _batch_sizes(len(data), recipe.batch_size) if size > 1 or len(data) == 1)
    schedule = make_schedule(optimizer, recipe, steps)
    generator = torch.Generator().manual_seed(seed)
    left = _total_steps(recipe, steps)
    progress = Progress(left, report)
    histories: list[History] = [[] for _ in names]
    for epoch in range(1, -(-left // steps) + 1):
        started, seen = time.monotonic(), 0
        total = torch.zeros(2, len(names), device=data.device)  # loss, right answers
        lr = optimizer.param_groups[0]["lr"]
        in_order = batches(data, recipe.batch_size, generator, augmented=True)
        for images, labels in islice(in_order, left):
            losses, right = step(images, labels)
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            optimizer.step()
            schedule.step()
            seen += len(labels)
            total += torch.stack([losses.detach() * len(labels), right.float()])

            def status(epoch: int = epoch, seen: int = seen, total: Tensor = total) -> str:
                loss, right = (total / seen).mean(1).tolist()
                return f"epoch {epoch}/{recipe.epochs:g}  loss {loss:.3f}  accuracy {100 * right:.1f} %"

            progress.step(status)
        left -= steps
        for name, history, loss, accuracy in zip(names, histories, *(total / seen).tolist(), strict=True):
            if not math.isfinite(loss):
                raise ZtwError(
                    f"{name}: the loss is {loss} in epoch {epoch}; lower lr (now {recipe.lr})"
                    " or set precision to fp32"
                )
            seconds, now = round(time.monotonic() - started, 3), round(time.time(), 3)
            history.append(
                {
                    "epoch": epoch,
                    "loss": loss,
                    "accuracy": accuracy,
                    "lr": lr,
                    "seconds": seconds,
                    "finished": now,
                }
            )
    return histories


def _total_steps(recipe: Recipe, steps: int) -> int:
    """Batches in the whole training; steps: in one epoch."""
    return max(1, round(recipe.epochs * steps))


def _batch_sizes(count: int, batch_size: int) -> list[int]:
    return [min(batch_size, count - start) for start in range(0, count, batch_size)]


def freeze(backbone: nn.Module) -> None:
    """No gradients, and eval mode: BatchNorm's statistics and dropout stand still."""
    backbone.eval()
    backbone.requires_grad_(False)
