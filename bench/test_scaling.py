"""Time the evaluation of a cell with 1, 2, 4 and 8 times as many samples and exits: does it grow linearly?"""

from __future__ import annotations

import pytest
import torch
from common import random_logits

import ztw
from ztw.evaluation.curves import Costs, SplitPredictions
from ztw.evaluation.methods import evaluate_method
from ztw.study.settings import EvaluationSettings, MethodSettings

METHOD = MethodSettings(ics="independent", rule="max_softmax")
EVALUATION = EvaluationSettings(budgets=(0.5, 1.0, "max"), protocols=("held-out",))
FACTORS = (1, 2, 4, 8)


def cell(exits: int, samples: int) -> None:
    """Run what follows a cell's predictions: fit the ensemble and evaluate it."""
    logits, labels = random_logits(exits, 2 * samples, 10)
    ensemble = ztw.fit_ensemble(logits[:, :samples], labels[:samples])
    ensembled = ensemble(logits)
    halves = [
        SplitPredictions(ensembled[:, part], labels[part]) for part in (slice(samples), slice(samples, None))
    ]
    cost = torch.arange(1.0, exits + 1).double()
    evaluate_method(*halves, {"ztw": Costs(cost, float(exits))}, METHOD, EVALUATION)


@pytest.mark.parametrize("factor", FACTORS)
def test_samples(benchmark, factor):
    benchmark.group = "a cell's ensemble and evaluation, as samples grow (7 exits)"
    benchmark.extra_info.update(what=f"{2500 * factor} samples", grows="samples", factor=factor)
    benchmark.pedantic(lambda: cell(7, 2500 * factor), rounds=2, warmup_rounds=1)


@pytest.mark.parametrize("factor", FACTORS)
def test_exits(benchmark, factor):
    benchmark.group = "a cell's evaluation, as exits grow (5000 samples)"
    benchmark.extra_info.update(what=f"{4 * factor} exits", grows="exits", factor=factor)
    logits, labels = random_logits(4 * factor, 10_000, 10)
    halves = [SplitPredictions(logits[:, part], labels[part]) for part in (slice(5000), slice(5000, None))]
    costs = {"ztw": Costs(torch.arange(1.0, 4 * factor + 1).double(), 4.0 * factor)}
    run = lambda: evaluate_method(*halves, costs, METHOD, EVALUATION)  # noqa: E731
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
