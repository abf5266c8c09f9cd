"""Test sweeps against a plain loop, and decisions of samples against sweeps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import ztw
from ztw.catalogue.parts import NO_THRESHOLD
from ztw.exits.rules import exit_rule, exit_scores, fit_rule
from ztw.exits.sweep import simulate_exits


def plain_sweep(logits, labels, cost, rule, parameters):
    """Sweep by a plain loop over thresholds and samples."""
    kind: Any = exit_rule(rule)
    scores = exit_scores(logits, kind)
    answers = logits.argmax(-1)
    rows = []
    for parameter in parameters:
        accuracy = total = 0.0
        fraction = [0.0] * len(logits)
        for n in range(logits.shape[1]):
            bounds = kind(parameter).bounds(len(logits)).tolist()
            passing = [k for k, bound in enumerate(bounds) if scores[k, n] > bound]
            exit = answer_exit = passing[0] if passing else len(logits) - 1
            if not passing and kind.best_answers:
                answer_exit = max(range(len(logits)), key=lambda k: scores[k, n])
            accuracy += float(answers[answer_exit, n] == labels[n]) / logits.shape[1]
            total += float(cost[exit]) / logits.shape[1]
            fraction[exit] += 1 / logits.shape[1]
        rows.append((accuracy, total, fraction))
    return rows


@pytest.mark.parametrize("rule", ztw.list_rules())
def test_sweep_equals_the_plain_loop(rule, logits, labels, cost):
    rule = fit_rule(logits, labels, rule)
    curve = ztw.sweep(logits, labels, cost, rule, points=15)
    rows = plain_sweep(logits, labels, cost, rule, curve.parameter.tolist())
    torch.testing.assert_close(curve.accuracy, torch.tensor([row[0] for row in rows]).double())
    torch.testing.assert_close(curve.cost, torch.tensor([row[1] for row in rows]).double())
    torch.testing.assert_close(curve.exit_fraction, torch.tensor([row[2] for row in rows]).double())


def per_exit_rows(logits, rule, rows):
    """Return thresholds (rows, K) that are scores of samples at each exit, so that ties matter."""
    scores = exit_scores(logits, rule)
    picks = torch.randint(scores.shape[1], (len(scores), rows), generator=torch.Generator().manual_seed(4))
    return scores.gather(1, picks).T * rule.sign


THRESHOLD_RULES = [rule for rule in ztw.list_rules() if rule not in NO_THRESHOLD]


@pytest.mark.parametrize("rule", THRESHOLD_RULES)
def test_sweep_with_a_threshold_per_exit_equals_the_plain_loop(rule, logits, labels, cost):
    rule = fit_rule(logits, labels, rule)
    thresholds = per_exit_rows(logits, rule, 10)
    curve = ztw.sweep(logits, labels, cost, rule, thresholds)
    rows = plain_sweep(logits, labels, cost, rule, thresholds.tolist())
    assert curve.parameter.tolist() == list(range(10))
    torch.testing.assert_close(curve.accuracy, torch.tensor([row[0] for row in rows]).double())
    torch.testing.assert_close(curve.cost, torch.tensor([row[1] for row in rows]).double())
    torch.testing.assert_close(curve.exit_fraction, torch.tensor([row[2] for row in rows]).double())
    without_last = ztw.sweep(logits, labels, cost, rule, thresholds[:, :-1])
    assert without_last.accuracy.tolist() == curve.accuracy.tolist()


@pytest.mark.parametrize("rule", THRESHOLD_RULES)
def test_the_same_threshold_at_every_exit_is_the_shared_one(rule, logits, labels, cost):
    rule = fit_rule(logits, labels, rule)
    shared = ztw.sweep(logits, labels, cost, rule, points=30)
    rows = shared.parameter[:, None].expand(-1, 3)
    per_exit = ztw.sweep(logits, labels, cost, rule, rows)
    for name in ("accuracy", "cost", "exit_fraction"):
        torch.testing.assert_close(getattr(per_exit, name), getattr(shared, name), rtol=1e-12, atol=0)


def test_many_rows_and_samples_go_in_chunks():
    logits = torch.randn(3, 9000, 2, generator=torch.Generator().manual_seed(5))
    labels, cost = torch.zeros(9000).long(), torch.tensor([1.0, 2.0, 3.0])
    shared = ztw.sweep(logits, labels, cost, "max_softmax", torch.linspace(0.5, 1, 500))
    rows = torch.linspace(0.5, 1, 500)[:, None].expand(-1, 2)
    per_exit = ztw.sweep(logits, labels, cost, "max_softmax", rows)
    assert per_exit.exit_fraction.tolist() == shared.exit_fraction.tolist()
    assert per_exit.accuracy.tolist() == shared.accuracy.tolist()


@pytest.mark.parametrize("rule", ztw.list_rules())
def test_the_mean_over_decisions_equals_sweep(rule, logits, labels, cost):
    kind: Any = fit_rule(logits, labels, rule)
    curve = ztw.sweep(logits, labels, cost, kind, points=10)
    for index, parameter in enumerate(curve.parameter.tolist()):
        exit_index, answer_exit = simulate_exits(logits, kind(parameter))
        answers = logits[answer_exit, torch.arange(200)].argmax(-1)
        assert (answers == labels).double().mean().item() == pytest.approx(curve.accuracy[index].item())
        assert exit_index.bincount(minlength=4).div(200).tolist() == pytest.approx(
            curve.exit_fraction[index].tolist()
        )


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


@pytest.mark.parametrize("rule", ztw.list_rules())
def test_one_exit_one_sample_one_class(rule):
    data = torch.zeros(1, 1, 1), torch.zeros(1).long()
    curve = ztw.sweep(*data, torch.ones(1), fit_rule(*data, rule))
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
