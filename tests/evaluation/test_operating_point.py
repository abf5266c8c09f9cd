"""Test `choose_threshold`: the operating point has the promised accuracy and cost on the held-out images."""

from __future__ import annotations

import operator
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import small_network, stripes

import ztw
from ztw.evaluation import operating_point, predictions
from ztw.exits.sweep import simulate_exits

HELD_OUT = next(stripes(200).batches(200))


@pytest.fixture(scope="module")
def network() -> ztw.EarlyExitNetwork:
    network = small_network("cascade_detached")
    ztw.train_exits(network, HELD_OUT, 5, lr=0.01, batch_size=32, progress=False)
    logits, labels = ztw.predict(network, HELD_OUT, progress=False)
    network.ensemble = ztw.fit_ensemble(logits, labels)
    return network


def test_predict(network, capsys):
    logits, labels = ztw.predict(network.train(), HELD_OUT, batch_size=64)
    assert network.training
    assert "200 samples" in capsys.readouterr().err
    assert (logits.shape, logits.dtype) == ((4, 200, 5), torch.float32)
    assert labels.tolist() == HELD_OUT[1].tolist()
    (expected,), _ = predictions.predict_networks([network.eval()], stripes(200))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    logits.requires_grad_()  # fails for a tensor made in inference mode


# a fixed exit refuses the network's ensemble, see tests/models/test_fixed_exit.py
@pytest.mark.parametrize("rule", [rule for rule in ztw.list_rules() if rule != "fixed_exit"])
@pytest.mark.parametrize("wish", [{"budget": 1.0}, {"budget": "max"}, {"allowed_loss": 0.05}])
def test_an_operating_point_holds_on_the_held_out_images(network, rule, wish):
    point = ztw.choose_threshold(network, HELD_OUT, **wish, rule=rule, points=50, progress=False)
    answers = network.ensemble(ztw.predict(network, HELD_OUT, progress=False)[0])
    left, answering = simulate_exits(answers, point.rule)
    right = answers[answering, torch.arange(200)].argmax(-1) == HELD_OUT[1]
    cost = ztw.macs(network)[left].mean()
    assert point.accuracy == pytest.approx(float(right.double().mean()))
    assert point.cost == pytest.approx(float(cost))
    assert point.relative_cost == pytest.approx(float(cost) / ztw.macs(network.backbone))
    assert point.exit_fraction == pytest.approx([float((left == k).double().mean()) for k in range(4)])
    if wish.get("budget") == 1.0:
        assert point.relative_cost <= 1.0
    if "allowed_loss" in wish:
        full = ztw.choose_threshold(network, HELD_OUT, budget=9.0, rule=rule, points=50, progress=False)
        assert point.accuracy >= full.accuracy - 0.05
        assert point.cost <= full.cost


@pytest.mark.parametrize("thresholds", ztw.list_thresholds())
def test_every_way_of_choosing(network, thresholds):
    predicted = ztw.predict(network, HELD_OUT, progress=False)
    wishes: list[dict[str, Any]] = [{"budget": 1.2}, {"allowed_loss": 0.02}]
    for wish in wishes:
        point = ztw.choose_threshold(network, predicted, **wish, thresholds=thresholds)
        assert f"{thresholds} thresholds of max_softmax, on 200 held-out samples" in point.chosen_by
        assert isinstance(point.rule, ztw.MaxSoftmax)
        assert isinstance(point.rule.threshold, tuple) == (thresholds in ("per_exit", "allowed_loss"))


def test_the_risk_is_at_most_the_requested_one(network):
    predicted = ztw.predict(network, HELD_OUT, progress=False)
    cautious = ztw.choose_threshold(network, predicted, risk=(0.02, 0.1))
    bold = ztw.choose_threshold(network, predicted, risk=(0.3, 0.5))
    assert cautious.chosen_by.startswith("risk (0.02, 0.1), risk_controlled thresholds")
    assert cautious.cost >= bold.cost
    answers = network.ensemble(predicted[0])
    left, _ = simulate_exits(answers, bold.rule)
    early = answers[left, torch.arange(200)].argmax(-1) != HELD_OUT[1]
    assert float((early & (answers[-1].argmax(-1) == HELD_OUT[1])).double().mean()) <= 0.3


def test_risk_without_held_out_images_of_a_class(network):
    """A held-out part with images of the first class only."""
    logits, labels = ztw.predict(network, HELD_OUT, progress=False)
    first = (labels == 0).nonzero().flatten()
    with pytest.raises(ztw.ZtwError, match=r"no held-out sample of 4 of 5 classes \(1, 2, 3, 4\)"):
        ztw.choose_threshold(network, (logits[:, first], labels[first]), risk=(0.1, 0.1))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "give one of budget, budget_ms, allowed_loss and risk, not none"),
        ({"budget": 1.0, "allowed_loss": 0.1}, "not budget and allowed_loss"),
        ({"budget": 0}, "budget 0: must be a fraction of the backbone's cost above 0, or 'max'"),
        ({"budget": "min"}, "budget 'min': must be"),
        (
            {"budget": 1e-6},
            "budget 1e-06: the cheapest .* max_softmax and shared thresholds costs 0.",
        ),
        ({"budget_ms": 0}, "budget_ms 0: must be a number of milliseconds above 0"),
        ({"budget_ms": "max"}, "budget_ms 'max': must be a number"),
        ({"budget_ms": 1e-6}, "budget_ms 1e-06: the cheapest .* takes .* ms on this machine"),
        ({"allowed_loss": 1}, r"allowed_loss 1: must be a share of the samples in \[0, 1\)"),
        ({"risk": 0.1}, r"risk 0.1: must be \(eps, delta\), both in \(0, 1\)"),
        ({"risk": (0.1, 1)}, r"risk \(0.1, 1\): must be"),
        (
            {"risk": (0.1, 0.1), "thresholds": "shared"},
            "thresholds 'shared': with risk, must be 'risk_controlled'",
        ),
        ({"budget": 1.0, "rule": "nope"}, "unknown exit rule 'nope'"),
        ({"budget": 1.0, "thresholds": "nope"}, "unknown way to choose thresholds 'nope'"),
        (
            {"budget": 1.0, "thresholds": "per_exit", "rule": "patience"},
            "the rule patience has no threshold; use 'shared'",
        ),
    ],
)
def test_wrong_goals(network, how, message):
    predicted = ztw.predict(network, HELD_OUT, progress=False)
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        ztw.choose_threshold(network, predicted, **how)
    assert "\n" not in str(caught.value)


def test_predictions_of_another_network(network):
    with pytest.raises(
        ztw.ZtwError, match=r"logits: shape \(3, 9, 5\), the network has 4 exits and 5 classes"
    ):
        ztw.choose_threshold(network, (torch.zeros(3, 9, 5), torch.zeros(9, dtype=torch.long)), budget=1.0)
    with pytest.raises(ztw.ZtwError, match="predict: Backbone, must be an EarlyExitNetwork"):
        ztw.predict(network.backbone, HELD_OUT)


def test_a_time_as_the_budget(network, tmp_path):
    """Check what is promised of the point, in PyTorch for both kinds of data, and in ONNX Runtime."""
    rule = ztw.MaxSoftmax(0.5)
    runner = ztw.OnnxRunner(ztw.export_onnx(network, rule, tmp_path / "network.onnx"), threads=1, cache=False)
    predicted = ztw.predict(network, HELD_OUT, progress=False)
    answers = network.ensemble(predicted[0])
    for which, data in ((network.train(), HELD_OUT), (network, predicted), (runner, HELD_OUT)):
        point = ztw.choose_threshold(which, data, budget_ms=1e4, progress=False)
        assert point.exit_ms is not None
        assert len(point.exit_ms) == 4
        assert all(0 < earlier < later for earlier, later in pairwise(point.exit_ms))
        assert point.ms == pytest.approx(sum(map(operator.mul, point.exit_fraction, point.exit_ms)))
        left, _ = simulate_exits(answers, point.rule)
        assert point.cost == pytest.approx(float(ztw.macs(network)[left].mean()), rel=1e-3)
        assert point.chosen_by.startswith("budget_ms 10000.0, shared thresholds")
    assert network.training
    network.eval()


def test_the_most_expensive_thresholds_within_the_time(network, monkeypatch):
    """Times are given, so that the choice can be checked: an exit costs 1, 2, 4 and 8 ms."""
    times = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    monkeypatch.setattr(operating_point, "exit_times", lambda *given: times)
    predicted = ztw.predict(network, HELD_OUT, progress=False)
    for budget in (1.5, 3.0, 8.0):
        point = ztw.choose_threshold(network, predicted, budget_ms=budget)
        assert point.ms is not None
        assert point.ms <= budget
        assert point.exit_ms == (1.0, 2.0, 4.0, 8.0)
        best = ztw.sweep(network.ensemble(predicted[0]), predicted[1], times, "max_softmax")
        assert point.ms == pytest.approx(float(best.cost[best.cost <= budget].max()))
    with pytest.raises(ztw.ZtwError, match=r"budget_ms 0\.5: the cheapest .* takes 1 ms on this machine"):
        ztw.choose_threshold(network, predicted, budget_ms=0.5)
    assert ztw.choose_threshold(network, predicted, budget=2.0).ms is None
