"""Measured time: what exits save on this machine, beside what they save in operations."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ztw.data.dataset import Data

Row = dict[str, Any]

WARM_UP = 2
REPEATS = 3


class Timed(NamedTuple):
    """What a call took (median_ms, p95_ms of a batch, images_per_s), and what it answered to each batch."""

    times: Row
    answers: list[Any]


def time_in_turn(
    calls: Sequence[Callable[[Tensor], Any]],
    batches: Sequence[Tensor],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timed]:
    """Time calls on every batch, each after a warm-up: latency of a batch, and images a second.

    batches: (B, C, H, W) each, on `device`; clock: the time in seconds.
    The calls are gone through REPEATS times, so that a machine whose speed drifts slows none more than another,
    and each batch counts at its fastest, because a machine has other things to do now and then.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    fastest = [[math.inf] * len(batches) for _ in calls]
    answers: list[list[Any]] = [[None] * len(batches) for _ in calls]
    for _ in range(REPEATS):
        for call, seconds, answered in zip(calls, fastest, answers, strict=True):
            for batch in batches[:WARM_UP]:
                call(batch)
            for place, batch in enumerate(batches):
                wait()
                started = clock()
                answered[place] = call(batch)
                wait()
                seconds[place] = min(seconds[place], clock() - started)
    images = sum(len(batch) for batch in batches)
    return [
        Timed(_summary(sorted(seconds), images), answered)
        for seconds, answered in zip(fastest, answers, strict=True)
    ]


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
