"""Run the training loop: steps, epochs, and the state that a resumed training needs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ztw.batch import Batch, device_of
from ztw.data.dataset import Data
from ztw.device import Compute
from ztw.errors import ZtwError
from ztw.progress import Progress, Report
from ztw.training.cuda_graph import CapturedGradients, Gradients
from ztw.training.recipe import Recipe, make_schedule, steps_per_epoch, total_steps
from ztw.training.resume import Checkpoints

# One row per epoch: epoch, loss, accuracy, lr, seconds, finished (Unix time).
History = list[dict[str, float]]
# inputs of N samples, labels (N,), the task's weights (W,) -> losses (M,) with gradient, correct predictions (M,)
Step = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A training task: the module, its losses and its optimizer.

    Args:
        names: name of each of the M losses, for messages.
        step: computes the losses of a batch.
        module: the trained module; a checkpoint saves its state.
        optimizer: the optimizer of the module's parameters.
        weights: share of the training completed at the end of the epoch, in (0, 1] -> weights (W,) for `step`, on
            the CPU.
    """

    names: Sequence[str]
    step: Step
    module: nn.Module
    optimizer: torch.optim.Optimizer
    weights: Callable[[float], Tensor] = lambda done: torch.ones(1)


def cross_entropy_step(forward: Callable[[Any], Tensor], compute: Compute) -> Step:
    """Return the step of a single cross-entropy loss; forward: inputs of N samples -> logits (N, C)."""

    def step(inputs: Batch, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        with compute.autocast():
            logits = forward(inputs)
        return F.cross_entropy(logits, labels)[None], (logits.argmax(-1) == labels).sum()[None]

    return step


TOO_SMALL = "Expected more than 1 "  # the start of torch's error in normalisation layers
OF_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")  # state of a schedule
OF_EPOCHS = ("step", "seen", "seconds", "lr", "histories")


class Training:
    """A running training, with all state for an exact resume."""

    def __init__(
        self, task: Task, recipe: Recipe, samples: int, seed: int, report: Report | None = None
    ) -> None:
        self.task, self.recipe = task, recipe
        self.steps, self.total = steps_per_epoch(recipe, samples), total_steps(recipe, samples)
        self.schedule = make_schedule(task.optimizer, recipe, samples)
        self.generator = torch.Generator().manual_seed(seed)
        self.histories: list[History] = [[] for _ in task.names]
        self.step = 0
        # Must not refer to self: a cycle would keep a CUDA graph's memory until Python's garbage collection
        self.gradients: Gradients = partial(_gradients, task)
        if recipe.cuda_graph:
            trained = [weight for group in task.optimizer.param_groups for weight in group["params"]]
            self.gradients = CapturedGradients(self.gradients, trained, recipe.batch_size, report)
        self.start_epoch()

    def start_epoch(self) -> None:
        """Reset the sums of the epoch."""
        self.order = self.generator.get_state()  # the order of the epoch's batches is drawn from this state
        self.lr = float(self.task.optimizer.param_groups[0]["lr"])
        self.seen, self.seconds = 0, 0.0
        self.sums = torch.zeros(2, len(self.task.names))  # losses and correct predictions of the samples seen

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        return max(0, self.step - 1) // self.steps + 1

    @property
    def epoch_is_over(self) -> bool:
        """Whether the last step completed its epoch."""
        return self.step % self.steps == 0 or self.step == self.total

    @property
    def position(self) -> str:
        """The progress in words."""
        return f"epoch {self.step / self.steps:.1f} of {self.recipe.epochs:g}"

    def batches(self, data: Data) -> Iterator[tuple[Batch, Tensor]]:
        """Return the remaining batches of the epoch."""
        done = self.step % self.steps
        now = self.generator.get_state()
        self.generator.set_state(self.order)
        batches = data.batches(self.recipe.batch_size, self.generator, augmented=True, skip=done)
        if done:
            self.generator.set_state(now)
        return islice(batches, min(self.steps - done, self.total - self.step))

    def train_on(self, inputs: Batch, labels: Tensor) -> None:
        """Take one optimizer step.

        Raises:
            ZtwError: if the batch is too small for a normalisation layer.
        """
        epoch = self.step // self.steps + 1
        done = min(1.0, epoch / self.recipe.epochs)
        weights = self.task.weights(done).to(device_of(inputs), non_blocking=True)
        try:
            losses, right = self.gradients(inputs, labels, weights)
        except ValueError as error:
            if not str(error).startswith(TOO_SMALL):
                raise
            raise ZtwError(
                f"a batch of {len(labels)} samples is too small for a normalisation layer"
                f" ({' '.join(str(error).split())}); use a larger batch_size, or drop_last=True in a DataLoader"
            ) from error
        self.task.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.seen += len(labels)
        self.sums = self.sums.to(losses.device) + torch.stack([losses * len(labels), right.float()])

    def end_epoch(self) -> None:
        """Add the epoch to the history.

        Raises:
            ZtwError: if a loss is not finite.
        """
        means = (self.sums / self.seen).tolist()
        ended = {"lr": self.lr, "seconds": round(self.seconds, 3), "finished": round(time.time(), 3)}
        for name, history, loss, accuracy in zip(self.task.names, self.histories, *means, strict=True):
            _check_finite(name, loss, self.epoch, self.recipe)
            history.append({"epoch": self.epoch, "loss": loss, "accuracy": accuracy, **ended})
        self.start_epoch()

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `ztw.training.resume.Resumable`."""
        tensors = {f"module.{name}": tensor for name, tensor in self.task.module.state_dict().items()}
        optimizer = self.task.optimizer.state_dict()
        for number, state in optimizer["state"].items():
            kept = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            tensors |= {f"optimizer.{number}.{key}": value for key, value in kept.items()}
        tensors |= {"sums": self.sums, "order": self.order, "generator": self.generator.get_state()}
        tensors |= {f"global.{device}": state for device, state in _global_generators().items()}
        values = {key: getattr(self, key) for key in OF_EPOCHS}
        values["schedule"] = {key: self.schedule.state_dict()[key] for key in OF_SCHEDULE}
        return tensors, {**values, "rates": [group["lr"] for group in optimizer["param_groups"]]}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """See `ztw.training.resume.Resumable`."""
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "optimizer": {}, "global": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.task.module.load_state_dict(parts["module"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
        groups = self.task.optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, values["rates"], strict=True):
            group["lr"] = rate
        self.task.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.schedule.load_state_dict(values["schedule"])
        for key in OF_EPOCHS:
            setattr(self, key, values[key])
        self.sums, self.order = tensors["sums"], tensors["order"]
        self.generator.set_state(tensors["generator"])
        _set_global_generators(parts["global"])


def _global_generators() -> dict[str, Tensor]:
    """Return the states of the global generators, which dropout uses: of the CPU and, if in use, of the GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_global_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])


def _gradients(task: Task, inputs: Batch, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    losses, right = task.step(inputs, labels, weights)
    task.optimizer.zero_grad(set_to_none=True)
    losses.sum().backward()
    return losses.detach(), right


def run_epochs(
    task: Task,
    data: Data,
    recipe: Recipe,
    seed: int,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[History]:
    """Run all epochs of a training; return a history for each of the M losses.

    Raises:
        ZtwError: if a loss is not finite at the end of an epoch, or after a signal that stops the training.
    """
    training = Training(task, recipe, len(data), seed, report)
    if checkpoints is None:
        _run(training, data, report)
        return training.histories
    resumed = checkpoints.restore(training)
    with checkpoints.saving(training) as saver:
        _run(training, data, report, saver.after_step, f"  (resumed at {training.position})" * resumed)
        checkpoints.save(training, training.step)  # a later part of the job may fail
    return training.histories


def _run(
    training: Training,
    data: Data,
    report: Report | None,
    after_step: Callable[[int], None] = lambda step: None,
    note: str = "",
) -> None:
    progress = Progress(training.total, report, done=training.step)
    while training.step < training.total:
        started = time.monotonic()
        for inputs, labels in training.batches(data):
            training.train_on(inputs, labels)
            training.seconds += time.monotonic() - started
            progress.step(partial(_status, training, note))
            if training.epoch_is_over:
                training.end_epoch()
            after_step(training.step)
            started = time.monotonic()
    training.task.optimizer.zero_grad(set_to_none=True)  # gradients hold a captured graph's memory


def _status(training: Training, note: str) -> str:
    loss, right = (training.sums / training.seen).mean(1).tolist()
    return f"epoch {training.epoch}/{training.recipe.epochs:g}  loss {loss:.3f}  accuracy {100 * right:.1f} %{note}"


def _check_finite(name: str, loss: float, epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise ZtwError(
            f"{name}: the loss is {loss} in epoch {epoch}; lower lr (now {recipe.lr})"
            " or set precision to fp32"
        )


def freeze(module: nn.Module) -> None:
    """Switch off gradients and set eval mode, so that BatchNorm's statistics stay and dropout is off."""
    module.eval()
    module.requires_grad_(False)
