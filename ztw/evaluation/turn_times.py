"""Measure calls in turns, with the spread of their times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ROUNDS = 5  # independent measurements; their range is the spread
TURNS = 3  # of each round; the fastest counts, because other processes may slow the machine
SECONDS = 15.0  # what all measurements may take together, roughly
FEWEST, MOST = 20, 200  # batches

Call = Callable[[Any], Any]


def round_times(
    calls: Sequence[Call],
    batches: Sequence[Any],
    rounds: int = ROUNDS,
    turns: int = TURNS,
    clock: Callable[[], float] = time.perf_counter,
    weights: Tensor | None = None,
) -> Tensor:
    """Measure the time of each call, in several rounds.

    In a turn, every call runs on every batch, one call after the other, so that a drift of the machine's speed affects
    all of them. For each batch, the fastest turn of a round counts. The time of a round is the mean over the batches.

    Args:
        calls: functions of a batch.
        batches: to run them on.
        rounds, turns: how often.
        clock: returns the time in seconds.
        weights: (calls, batches), weights of the mean; None = all alike.

    Returns:
        float64 (calls, rounds), in milliseconds.
    """
    for call in calls:
        call(batches[0])
    found = torch.empty(rounds, turns, len(calls), len(batches), dtype=torch.float64)
    for place in range(rounds * turns):
        of_turn = found.flatten(0, 1)[place]
        for number, call in enumerate(calls):
            call(batches[-1])  # the first call after another network's is slower
            for index, batch in enumerate(batches):
                started = clock()
                call(batch)
                of_turn[number, index] = clock() - started
    weights = torch.ones(found.shape[2:], dtype=torch.float64) if weights is None else weights
    return 1e3 * ((found.amin(1) * weights).sum(-1) / weights.sum(-1)).T


def weights_of(exit_index: Tensor, fraction: Tensor) -> Tensor:
    """Return weights (B,) of single samples, so that few of them stand for all held-out samples.

    Args:
        exit_index: int64 (B,), where each timed sample leaves.
        fraction: (K,), share of all held-out samples that leave at each exit.
    """
    count = torch.bincount(exit_index, minlength=len(fraction)).double()
    weights = (fraction / count.clamp(min=1))[exit_index]
    return weights if weights.sum() > 0 else torch.ones_like(weights)


def batches_within(seconds_each: float, seconds: float | None = None) -> int:
    """Return how many batches to time, if all calls together take `seconds_each` for a batch; None = SECONDS."""
    seconds = SECONDS if seconds is None else seconds
    return max(FEWEST, min(MOST, int(seconds / max(seconds_each * ROUNDS * TURNS, 1e-9))))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch use this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
