"""Measure the time of each exit: the cost of a sample that leaves there, on this machine."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ztw.batch import Batch, split
from ztw.exits.rules import ExitRule
from ztw.models.network import EarlyExitNetwork
from ztw.onnx.runner import OnnxRunner

REPEATS = 10  # of each measurement; their median counts
SAMPLES = 4  # number of samples to time
LEAST = 1e-6  # ms by which each exit costs more than the exit before it


def exit_times(
    network: EarlyExitNetwork | OnnxRunner,
    rule: type[ExitRule],
    inputs: Batch,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> Tensor:
    """Measure the time that one sample takes if it leaves at each exit.

    Each sample runs alone, in PyTorch by `infer`, or in ONNX Runtime. The time includes all exits before the one where
    it leaves, and their scores. The exits take turns, so that a drift of the machine's speed affects all of them. The
    median of the repetitions counts, and the mean of the samples.

    Args:
        network: a network in eval mode, or an exported one.
        rule: class of the exit rule.
        inputs: a batch of what the network takes; each sample is timed.
        repeats: number of repetitions, after one that does not count.
        clock: returns the time in seconds.

    Returns:
        float64 (K,), in milliseconds, strictly increasing: an exit with a shorter time than an earlier exit gets the
        time of the earlier one. The rule "fixed_exit" has the times of the cut networks, in any order.
    """
    run: Callable[[Any, ExitRule], Any] = network.infer if isinstance(network, EarlyExitNetwork) else network
    samples = list(split(inputs, 1))
    rules = [leaving_at(exit, network.exits, rule) for exit in range(network.exits)]
    seconds: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for repeat in range(repeats + 1):
        for number, sample in enumerate(samples):
            for exit, leaves in enumerate(rules):
                started = clock()
                run(sample, leaves).logits.cpu()  # waits for a GPU
                if repeat:
                    seconds[exit, number].append(clock() - started)
    medians = torch.tensor(
        [
            [statistics.median(seconds[exit, number]) for number in range(len(samples))]
            for exit in range(len(rules))
        ],
        dtype=torch.float64,
    )
    times = 1e3 * medians.mean(1)
    return times if rule.single else times.cummax(0).values + LEAST * torch.arange(len(rules))


def leaving_at(exit: int, exits: int, kind: type[ExitRule]) -> ExitRule:
    """Return a rule of a class by which every sample leaves at one exit of `exits`, whatever its scores are."""
    if kind.single:
        return kind(exit + 1)  # type: ignore[call-arg]
    bounds = torch.full((exits - 1,), -math.inf, dtype=torch.float64)
    bounds[:exit] = math.inf
    rule = object.__new__(kind)  # without a parameter
    object.__setattr__(rule, "bounds", lambda exits: bounds)
    return rule
