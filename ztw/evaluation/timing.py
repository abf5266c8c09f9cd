"""Measured time: what exits save on this machine, beside what they save in operations."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ztw.data.dataset import Data

Row = dict[str, Any]

WARM_UP = 2
REPEATS = 3
BACKBONE = "backbone alone"


def time_in_turn(
    calls: Sequence[Callable[[Tensor], Any]], batches: Sequence[Tensor], device: torch.device
) -> list[Row]:
    """Time calls on every batch, each after a warm-up: latency of a batch, and images a second.

    batches: (B, C, H, W) each, on `device`. The calls are gone through REPEATS times, so that a machine whose
    speed drifts slows none more than another, and each batch counts at its fastest, because a machine has
    other things to do now and then. Returns median_ms, p95_ms (of a batch) and images_per_s of each call.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    fastest = [[math.inf] * len(batches) for _ in calls]
    for _ in range(REPEATS):
        for call, spent in zip(calls, fastest, strict=True):
            for batch in batches[:WARM_UP]:
                call(batch)
            for place, batch in enumerate(batches):
                wait()
                started = time.perf_counter()
                call(batch)
                wait()
                spent[place] = min(spent[place], time.perf_counter() - started)
    images = sum(len(batch) for batch in batches)
    return [_summary(sorted(spent), images) for spent in fastest]


def _summary(spent: list[float], images: int) -> Row:
    slow = spent[min(len(spent) - 1, round(0.95 * (len(spent) - 1)))]
    return {
        "median_ms": 1e3 * statistics.median(spent),
        "p95_ms": 1e3 * slow,
        "images_per_s": images / sum(spent),
    }


def take_batches(data: Data, size: int, images: int, device: torch.device) -> list[Tensor]:
    """At least five batches of `size`, from the first test images over and over; no more than `images` of size 1."""
    wanted = max(5, images // size) * size
    found: list[Tensor] = []
    while sum(len(batch) for batch in found) < wanted:
        found += [batch.to(device) for batch, _ in data.batches(size) if len(batch) == size] or [
            batch.to(device) for batch, _ in data.batches(size)
        ]
        found = found[: wanted // size]
    return found
