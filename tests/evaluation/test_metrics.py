"""Test metrics of exits and choices at budgets against hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch

import ztw
from ztw.evaluation.metrics import at_budget


def curve_of(parameter, accuracy, cost):
    """Return a curve of hand-computed values."""
    parameter, accuracy, cost = (
        torch.tensor(values, dtype=torch.float64) for values in (parameter, accuracy, cost)
    )
    return ztw.Curve(parameter, accuracy, cost, torch.empty(len(parameter), 0))


def test_budgets_by_hand():
    curve = curve_of([0.1, 0.2, 0.3, 0.4], [0.5, 0.7, 0.9, 0.8], [20.0, 50.0, 75.0, 120.0])
    budgets: list[float | str] = [0.1, 0.25, 0.5, 0.75, 1.0, 1.2, "max"]
    values = ztw.accuracy_at_budget(curve, budgets, base_cost=100.0).tolist()
    assert math.isnan(values[0])
    assert values[1:] == [0.5, 0.7, 0.9, 0.9, 0.8, 0.9]


def test_equal_costs_take_the_most_cautious_parameter():
    curve = curve_of([0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [50.0, 50.0, 90.0])
    assert at_budget(curve, [0.6], 100.0) == [1]


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "half"])
def test_a_budget_must_be_positive(budget):
    curve = curve_of([0.1], [0.5], [20.0])
    with pytest.raises(ztw.ZtwError, match="must be a fraction of the backbone's cost above 0, or 'max'"):
        ztw.accuracy_at_budget(curve, [budget], 100.0)


def test_exit_accuracy_by_hand():
    answers = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]])
    logits = torch.nn.functional.one_hot(answers, 2).float()
    assert ztw.exit_accuracy(logits, torch.zeros(5).long()).tolist() == [0.6, 0.8]


def test_hindsight_improvability_by_hand():
    # rows: exits, columns: samples, 1 = right; the label is always class 0
    right = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
    logits = torch.stack([right, 1 - right], dim=-1).float()
    values = ztw.hindsight_improvability(logits, torch.zeros(5).long())
    # exit 2: wrong on samples 1, 4, 5; exit 1 is right on 1. Exit 3: wrong on 1-4; earlier exits are right on 1-3
    assert values.tolist() == [0.0, pytest.approx(1 / 3), pytest.approx(3 / 4)]


def test_hindsight_improvability_of_a_perfect_exit_is_zero():
    logits = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    assert ztw.hindsight_improvability(logits, torch.zeros(1).long()).tolist() == [0.0, 0.0]
