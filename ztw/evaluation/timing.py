"""Measure the time of networks, with and without exits, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ztw.batch import mapped, size_of
from ztw.data.dataset import Data

Row = dict[str, Any]

# Turns of each measurement; the fastest counts. On the quick study, more turns lower the spread of relative times of
# single images, but not of batches of 64.
TURNS, TURNS_OF_SINGLE = 2, 4
# So few methods get twice the turns, because all turns could be in one slow phase of the machine.
FEW = 2


@dataclass(frozen=True)
class Timing:
    """A call to time; network: equal for calls that differ in thresholds only, None = no such calls."""

    run: Callable[[Tensor], Any]
    network: Hashable = None


class Timed(NamedTuple):
    """Times of a call (median_ms and p95_ms of a batch, images_per_s) and its predictions for each batch."""

    times: Row
    predictions: list[Any]


def time_in_turn(
    calls: Sequence[Timing],
    batches: Sequence[Tensor],
    turns: int,
    device: torch.device,
    step: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timed]:
    """Time calls on every batch, after a warm-up: latency of a batch, and images per second.

    The calls take turns, so that a drift of the machine's speed affects all of them. Every turn starts with another
    batch, because the first batch after a change of network is slower. The fastest time of a batch counts, because
    other processes may slow the machine. If a batch leaves a network at the same exits at two budgets, it is timed
    once per turn for both.

    Args:
        batches: (B, C, H, W) each, on `device`.
        step: called after every turn of a call.
        clock: returns the time in seconds.
    """
    work = WorkTimes(device, clock)
    for call in calls:  # warm-up
        call.run(batches[0])
    for turn in range(turns):
        for number, call in enumerate(calls):
            for later in range(len(batches)):
                place = (turn + later) % len(batches)
                work.time(turn, (number, place), call, batches[place])
            step()
    return [work.of_call(number, batches) for number in range(len(calls))]


def turns_of(size: int, methods: int) -> int:
    """Return the number of turns for a batch size and a number of methods."""
    return (TURNS_OF_SINGLE if size == 1 else TURNS) * (2 if methods <= FEW else 1)


class WorkTimes:
    """Store one time per turn of each piece of work, so that all have the same chance of a fast time.

    A piece of work is a network, a batch and the exits where its images leave.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.seconds: dict[Hashable, dict[int, float]] = {}  # work -> turn -> seconds
        self.done: dict[tuple[int, int], tuple[Hashable, Any]] = {}  # (call, batch) -> work, predictions

    def time(self, turn: int, at: tuple[int, int], call: Timing, batch: Tensor) -> None:
        """Time a call on a batch, unless the same work was timed in this turn; at: (call, batch)."""
        if at in self.done and turn in self.seconds[self.done[at][0]]:
            return
        self.wait()
        started = self.clock()
        predictions = call.run(batch)
        self.wait()
        seconds = self.clock() - started
        number, place = at
        work = (number if call.network is None else call.network, place, _exits(predictions))
        self.done[at] = work, predictions
        self.seconds.setdefault(work, {}).setdefault(turn, seconds)

    def of_call(self, number: int, batches: Sequence[Tensor]) -> Timed:
        """Return the times and predictions of a call for these batches."""
        works, predictions = zip(*(self.done[number, place] for place in range(len(batches))), strict=True)
        fastest = sorted(min(self.seconds[work].values()) for work in works)
        return Timed(_summary(fastest, sum(map(len, batches))), list(predictions))


def _exits(predictions: Any) -> tuple[int, ...]:
    """Return the exits where a batch's images left; () for a network without exits."""
    return tuple(predictions.exit_index.tolist()) if hasattr(predictions, "exit_index") else ()


def share_that_differs(predictions: Sequence[Any], reference: Sequence[Any]) -> float:
    """Return the share of images with another predicted class or another exit than in the reference.

    Each batch is an `ExitResult`, or the logits (N, C) of a network without exits.
    """
    found, expected = (torch.cat([_outcome(one) for one in part], 1) for part in (predictions, reference))
    return float((found != expected).any(0).double().mean())


def _outcome(predictions: Any) -> Tensor:
    """Return the class and the exit of every image, (2, N)."""
    if isinstance(predictions, Tensor):
        return torch.stack([predictions.argmax(-1), torch.zeros_like(predictions[:, 0], dtype=torch.int64)])
    return torch.stack([predictions.logits.argmax(-1), predictions.exit_index])


def _summary(seconds: list[float], images: int) -> Row:
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "p95_ms": 1e3 * seconds[round(0.95 * (len(seconds) - 1))],
        "images_per_s": images / sum(seconds),
    }


def take_batches(data: Data, size: int, images: int, device: torch.device) -> list[Any]:
    """Return batches (B, C, H, W) to time, from the first images of `data`, repeated if it has too few.

    Args:
        size: images per batch; a smaller data set gives smaller batches.
        images: total number of images; there are at least five batches.
    """
    count = max(5, images // size)
    found = [
        mapped(batch, lambda tensor: tensor.to(device)) for batch, _ in islice(data.batches(size), count)
    ]
    full = [batch for batch in found if size_of(batch) == size] or found
    return list(islice(cycle(full), count))
