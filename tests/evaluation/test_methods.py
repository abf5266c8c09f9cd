"""Test that a method's rule is fitted on the split that chooses its thresholds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import ztw
from ztw.evaluation.curves import Costs, SplitPredictions
from ztw.evaluation.methods import evaluate_method, rules_at_budgets
from ztw.study.settings import EvaluationSettings, MethodSettings
from ztw.testing import draw

UNIT = {"ztw": Costs(torch.tensor([25.0, 50.0, 75.0, 100.0], dtype=torch.float64), 100.0)}
SETTINGS = EvaluationSettings(
    budgets=(0.5, 0.75, "max"), protocols=("held-out", "paper"), allowed_losses=(0.01, 0.05), points=50
)


def halves() -> tuple[SplitPredictions, SplitPredictions]:
    """Return a validation and a test split, whose first exit is overconfident."""
    logits, labels = draw(samples=800)
    logits[0] *= 5
    return SplitPredictions(logits[:, :400], labels[:400]), SplitPredictions(logits[:, 400:], labels[400:])


@pytest.mark.parametrize("thresholds", ["shared", "per_exit", "allowed_loss"])
@pytest.mark.parametrize("rule", ["pcee", "temperature"])
def test_a_rule_is_fitted_where_its_thresholds_are_chosen(rule, thresholds):
    validation, test = halves()
    method = MethodSettings(ics="independent", rule=rule, thresholds=thresholds)
    found = evaluate_method(validation, test, UNIT, method, SETTINGS)
    for protocol, chooser in {"held-out": validation, "paper": test}.items():
        fitted: Any = ztw.fit_rule(chooser.logits, chooser.labels, rule)
        for budget, own in found.rules[protocol].items():
            assert type(own) is fitted
            exit_index = ztw.simulate_exits(test.logits, own)[0]
            right = test.logits[exit_index, torch.arange(400)].argmax(-1) == test.labels
            assert found.correct[f"{protocol}@{budget}"].tolist() == right.byte().tolist()
    assert rules_at_budgets(validation, UNIT["ztw"], method, SETTINGS) == found.rules["held-out"]
    alone = evaluate_method(None, test, UNIT, method, EvaluationSettings(protocols=("paper",), points=50))
    assert set(alone.curves["split"]) == {"test"}


def test_the_shared_threshold_of_pcee_holds_at_every_exit():
    """Samples that leave at a threshold are at least as accurate at every exit, although one is overconfident."""
    validation, test = halves()
    for rule, holds in (("pcee", True), ("max_softmax", False)):
        kind: Any = ztw.fit_rule(validation.logits, validation.labels, rule)
        exit_index = ztw.simulate_exits(test.logits, kind(0.85))[0]
        right = test.logits[exit_index, torch.arange(400)].argmax(-1) == test.labels
        of_first = float(right[exit_index == 0].double().mean())
        assert (of_first > 0.85) == holds, of_first
        assert not math.isnan(of_first)
