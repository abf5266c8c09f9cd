"""Sweeps, budgets and metrics against hand-computed values and a plain loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import ztw
from ztw.rules import exit_rule, exit_scores


def plain_sweep(logits, labels, cost, rule, parameters):
    """The obvious loop: threshold by threshold, sample by sample."""
    kind: Any = exit_rule(rule)
    scores = exit_scores(logits, kind)
    answers = logits.argmax(-1)
    rows = []
    for parameter in parameters:
        accuracy = total = 0.0
        fraction = [0.0] * len(logits)
        for n in range(logits.shape[1]):
            passing = [k for k in range(len(logits)) if scores[k, n] > kind(parameter).bound]
            exit = min(passing[0] if passing else len(logits) - 1, len(logits) - 1)
            accuracy += float(answers[exit, n] == labels[n]) / logits.shape[1]
            total += float(cost[exit]) / logits.shape[1]
            fraction[exit] += 1 / logits.shape[1]
        rows.append((accuracy, total, fraction))
    return rows


@pytest.mark.parametrize("rule", list(ztw.RULES))
def test_sweep_is_the_plain_loop(rule, logits, labels, cost):
    curve = ztw.sweep(logits, labels, cost, rule, points=40)
    rows = plain_sweep(logits, labels, cost, rule, curve.parameter.tolist())
    torch.testing.assert_close(curve.accuracy, torch.tensor([row[0] for row in rows]).double())
    torch.testing.assert_close(curve.cost, torch.tensor([row[1] for row in rows]).double())
    torch.testing.assert_close(curve.exit_fraction, torch.tensor([row[2] for row in rows]).double())


def test_sweep_takes_parameters_in_any_order(logits, labels, cost):
    forward = ztw.sweep(logits, labels, cost, "max_softmax", [0.3, 0.9, 0.5])
    sorted_ = ztw.sweep(logits, labels, cost, "max_softmax", [0.3, 0.5, 0.9])
    assert forward.accuracy.tolist() == sorted_.accuracy[[0, 2, 1]].tolist()
    assert forward.exit_fraction[1].tolist() == sorted_.exit_fraction[2].tolist()


def test_ties_across_samples_and_thresholds(labels, cost):
    logits = torch.randint(2, (4, 200, 5), generator=torch.Generator().manual_seed(0)).float()
    values = exit_scores(logits, ztw.MaxSoftmax).unique().tolist()
    curve = ztw.sweep(logits, labels, cost, "max_softmax", values)
    rows = plain_sweep(logits, labels, cost, "max_softmax", values)
    assert curve.cost.tolist() == pytest.approx([row[1] for row in rows])


@pytest.mark.parametrize("rule", list(ztw.RULES))
def test_one_exit_one_sample_one_class(rule):
    curve = ztw.sweep(torch.zeros(1, 1, 1), torch.zeros(1).long(), torch.ones(1), rule)
    assert curve.accuracy.eq(1).all()
    assert curve.exit_fraction.eq(1).all()


def test_malformed_input_is_refused(logits, labels, cost):
    broken = logits.clone()
    broken[0, 0, 0] = math.nan
    cases = [
        ((broken, labels, cost), "1 values are NaN"),
        ((logits[0], labels, cost), r"shape \(200, 5\)"),
        ((logits, labels[:9], cost), r"labels: shape \(9,\)"),
        ((logits, labels + 4, cost), "must lie in 0..4"),
        ((logits, labels, cost[:3]), r"cost: shape \(3,\)"),
        ((logits, labels, cost.flip(0)), "strictly increasing"),
    ]
    for arguments, message in cases:
        with pytest.raises(ztw.ZtwError, match=message):
            ztw.sweep(*arguments, "max_softmax")


# Ten samples, three exits, confidences in steps: a table worked out on paper.
def curve_of(parameter, accuracy, cost):
    tensors = [torch.tensor(values, dtype=torch.float64) for values in (parameter, accuracy, cost)]
    parameter, accuracy, cost = tensors
    return ztw.Curve(parameter, accuracy, cost, torch.empty(len(parameter), 0))


def test_budgets_by_hand():
    curve = curve_of([0.1, 0.2, 0.3, 0.4], [0.5, 0.7, 0.9, 0.8], [20.0, 50.0, 75.0, 120.0])
    budgets: list[float | str] = [0.1, 0.25, 0.5, 0.75, 1.0, 1.2, "max"]
    values = ztw.accuracy_at_budget(curve, budgets, base_cost=100.0).tolist()
    assert math.isnan(values[0])
    assert values[1:] == [0.5, 0.7, 0.9, 0.9, 0.8, 0.9]


def test_equal_costs_take_the_most_cautious_parameter():
    curve = curve_of([0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [50.0, 50.0, 90.0])
    assert ztw.at_budget(curve, [0.6], 100.0) == [1]


@pytest.mark.parametrize("budget", [0, -1, float("nan"), "half"])
def test_a_budget_must_be_positive(budget):
    curve = curve_of([0.1], [0.5], [20.0])
    with pytest.raises(ztw.ZtwError, match="must be a fraction of the backbone's cost above 0, or 'max'"):
        ztw.accuracy_at_budget(curve, [budget], 100.0)


def test_hindsight_improvability_by_hand():
    # right (1) or wrong (0) of three exits on five samples, label always class 0
    right = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]])
    logits = torch.stack([right, 1 - right], dim=-1).float()
    values = ztw.hindsight_improvability(logits, torch.zeros(5).long())
    # exit 2 is wrong on samples 1, 4, 5, of which exit 1 had sample 1; exit 3 on 1-4, of which 1-3 were had
    assert values.tolist() == [0.0, pytest.approx(1 / 3), pytest.approx(3 / 4)]


def test_hindsight_improvability_of_a_perfect_exit_is_zero():
    logits = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    assert ztw.hindsight_improvability(logits, torch.zeros(1).long()).tolist() == [0.0, 0.0]
