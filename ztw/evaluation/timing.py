"""Measured time: what exits save on this machine, beside what they save in operations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ztw.data.dataset import Data

Row = dict[str, Any]

# How often work is timed; its fastest time counts. Measured on the quick study: a third time lowers the spread of the
# relative times of single images, but not that of batches of 64.
TURNS, TURNS_OF_SINGLE = 2, 4
# Turns of one or two methods lie within seconds, which may be a slow phase of the machine: they get twice as many.
FEW = 2


@dataclass(frozen=True)
class Timing:
    """A call to time; network: what calls have in common that differ in thresholds alone, None for a call by itself."""

    run: Callable[[Tensor], Any]
    network: Hashable = None


class Timed(NamedTuple):
    """What a call took (median_ms, p95_ms of a batch, images_per_s), and what it answered to each batch."""

    times: Row
    answers: list[Any]


def time_in_turn(
    calls: Sequence[Timing],
    batches: Sequence[Tensor],
    turns: int,
    device: torch.device,
    step: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timed]:
    """Time calls on every batch, after a warm-up: latency of a batch, and images a second.

    batches: (B, C, H, W) each, on `device`; turns: how often work is timed; step: called after every turn of a
    call; clock: the time in seconds.
    The calls take turns, so that a machine whose speed drifts slows none more than another, and every turn starts with
    another batch, because the first call after another network is slower. Work counts at its fastest, because a machine
    has other things to do now and then. A batch that leaves one network at the same exits at two budgets is the same
    work: it is timed once a turn, and both have its times.
    """
    work = WorkTimes(device, clock)
    for call in calls:  # whatever is made when a network is first called
        call.run(batches[0])
    for turn in range(turns):
        for number, call in enumerate(calls):
            for later in range(len(batches)):
                place = (turn + later) % len(batches)
                work.time(turn, (number, place), call, batches[place])
            step()
    return [work.of_call(number, batches) for number in range(len(calls))]


def turns_of(size: int, methods: int) -> int:
    """How often batches of a size are timed, so many methods being timed in turn."""
    return (TURNS_OF_SINGLE if size == 1 else TURNS) * (2 if methods <= FEW else 1)


class WorkTimes:
    """Seconds of every kind of work, one a turn, so that none has more chances than another to be fast."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.seconds: dict[Hashable, dict[int, float]] = {}  # work -> turn -> seconds
        self.done: dict[tuple[int, int], tuple[Hashable, Any]] = {}  # (call, batch) -> its work, its answer

    def time(self, turn: int, at: tuple[int, int], call: Timing, batch: Tensor) -> None:
        """Time a call on a batch, unless its work is known and has been timed in this turn; at: (call, batch)."""
        if at in self.done and turn in self.seconds[self.done[at][0]]:
            return
        self.wait()
        started = self.clock()
        answer = call.run(batch)
        self.wait()
        seconds = self.clock() - started
        number, place = at
        work = (number if call.network is None else call.network, place, _exits(answer))
        self.done[at] = work, answer
        self.seconds.setdefault(work, {}).setdefault(turn, seconds)

    def of_call(self, number: int, batches: Sequence[Tensor]) -> Timed:
        """What a call took for these batches."""
        works, answers = zip(*(self.done[number, place] for place in range(len(batches))), strict=True)
        fastest = sorted(min(self.seconds[work].values()) for work in works)
        return Timed(_summary(fastest, sum(map(len, batches))), list(answers))


def _exits(answer: Any) -> tuple[int, ...]:
    """Where the images of a batch left; nothing of a network without exits."""
    return tuple(answer.exit_index.tolist()) if hasattr(answer, "exit_index") else ()


def share_that_differs(answers: Sequence[Any], reference: Sequence[Any]) -> float:
    """Share of the images, in batches, that get another class or leave at another exit than in the reference.

    Of each batch an `ExitResult`, or the logits (N, C) of a network that has no exits.
    """
    found, expected = (torch.cat([_outcome(answer) for answer in part], 1) for part in (answers, reference))
    return float((found != expected).any(0).double().mean())


def _outcome(answer: Any) -> Tensor:
    """(2, N): the class and the exit of every image."""
    if isinstance(answer, Tensor):
        return torch.stack([answer.argmax(-1), torch.zeros_like(answer[:, 0], dtype=torch.int64)])
    return torch.stack([answer.logits.argmax(-1), answer.exit_index])


def _summary(seconds: list[float], images: int) -> Row:
    """Of the sorted times of the batches, which hold so many images in all."""
    return {
        "median_ms": 1e3 * statistics.median(seconds),
        "p95_ms": 1e3 * seconds[round(0.95 * (len(seconds) - 1))],
        "images_per_s": images / sum(seconds),
    }


def take_batches(data: Data, size: int, images: int, device: torch.device) -> list[Tensor]:
    """Batches (B, C, H, W) to time, from the first images of `data`, over and over where it has too few.

    size: of a batch, unless the data is smaller; images: about how many in all, at least five batches.
    """
    count = max(5, images // size)
    found = [batch.to(device) for batch, _ in islice(data.batches(size), count)]
    full = [batch for batch in found if len(batch) == size] or found
    return list(islice(cycle(full), count))
