"""Time sweeps (all thresholds in one pass) against one softmax over the same logits and against a plain loop."""

from __future__ import annotations

import pytest
import torch
from common import random_logits

import ztw
from ztw.exits.rules import exit_rule, exit_scores
from ztw.exits.thresholds import candidates

SIZES = {10: (28, 10_000, 10), 200: (28, 10_000, 200)}
PLAIN_THRESHOLDS = 50  # the plain loop's time is proportional to the number of thresholds


def plain_sweep(
    logits: torch.Tensor, labels: torch.Tensor, cost: torch.Tensor, thresholds: torch.Tensor
) -> list:
    """Sweep by a plain loop over thresholds and exits."""
    rows = []
    for threshold in thresholds.tolist():
        left = torch.zeros(len(labels), dtype=torch.bool)
        right = total = 0.0
        for exit in range(len(logits)):
            confidence, predicted = logits[exit].softmax(-1).max(-1)
            leaves = ~left if exit == len(logits) - 1 else (confidence > threshold) & ~left
            right += float((predicted[leaves] == labels[leaves]).sum())
            total += float(cost[exit] * leaves.sum())
            left |= leaves
        rows.append((right / len(labels), total / len(labels)))
    return rows


@pytest.fixture(params=list(SIZES), ids=lambda num_classes: f"28x10000x{num_classes}", scope="module")
def data(request):
    logits, labels = random_logits(*SIZES[request.param])
    return logits, labels, torch.arange(1.0, 29.0)


def name(benchmark, data, what: str, **facts) -> None:
    benchmark.group = f"sweep 28 x 10,000 x {data[0].shape[2]}"
    benchmark.extra_info.update(what=what, **facts)


def test_softmax_and_max(benchmark, data):
    name(benchmark, data, "one softmax and max over the logits")
    benchmark(lambda: data[0].softmax(-1).max(-1))


def test_plain_loop(benchmark, data):
    name(
        benchmark,
        data,
        "reference: plain loop, 1000 thresholds",
        scale=1000 / PLAIN_THRESHOLDS,
        reference=True,
    )
    thresholds = torch.linspace(0.1, 1, PLAIN_THRESHOLDS)
    benchmark.pedantic(lambda: plain_sweep(*data, thresholds), rounds=1)


@pytest.mark.parametrize("rule", ztw.list_rules())
def test_sweep(benchmark, data, rule):
    name(benchmark, data, f"ztw.sweep {rule}, its own grid")
    curve = benchmark(lambda: ztw.sweep(*data, rule))
    assert len(curve.parameter) >= 27


def test_sweep_1000_thresholds(benchmark, data):
    name(benchmark, data, "ztw.sweep max_softmax, 1000 thresholds")
    thresholds = torch.linspace(0.1, 1, 1000)
    curve = benchmark(lambda: ztw.sweep(*data, "max_softmax", thresholds))
    plain = plain_sweep(*data, thresholds[::250])
    assert curve.accuracy[::250].tolist() == pytest.approx([row[0] for row in plain])


def test_sweep_all_thresholds(benchmark, data):
    name(benchmark, data, "ztw.sweep max_softmax, every confidence a threshold")
    scores = exit_scores(data[0], exit_rule("max_softmax")).unique()
    benchmark.extra_info["thresholds"] = len(scores)
    benchmark(lambda: ztw.sweep(*data, "max_softmax", scores))


def test_sweep_per_exit_thresholds(benchmark, data):
    name(benchmark, data, "ztw.sweep max_softmax, 100 thresholds per exit")
    offered = candidates("allowed_loss", *data, "max_softmax")
    benchmark(lambda: ztw.sweep(*data, "max_softmax", offered.thresholds))
