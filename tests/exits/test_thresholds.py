"""Test the choices of thresholds: against hand-computed values and a plain loop, and the guarantee by simulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ztw
from ztw.catalogue.parts import NO_THRESHOLD
from ztw.exits import thresholds
from ztw.exits.rules import exit_rule, exit_scores
from ztw.exits.sweep import simulate_exits
from ztw.exits.thresholds import THRESHOLDS

THRESHOLD_RULES = [rule for rule in ztw.list_rules() if rule not in NO_THRESHOLD]
COST = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)


def draw(samples, seed, exits=4, num_classes=5):
    """Return logits (K, N, C), more accurate at later exits, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (samples,), generator=generator)
    easy = 1.5 * torch.randn(samples, generator=generator)
    logits = torch.randn(exits, samples, num_classes, generator=generator)
    for exit in range(exits):
        logits[exit, torch.arange(samples), labels] += 1.0 + 0.8 * exit + easy
    return 1.5 * logits, labels


@pytest.mark.parametrize("rule", THRESHOLD_RULES)
@pytest.mark.parametrize("choice", list(THRESHOLDS))
def test_every_choice_keeps_the_contract(choice, rule):
    logits, labels = draw(400, seed=0)
    kind = ztw.fit_rule(logits, labels, rule)
    if choice == "risk_controlled" and issubclass(kind, ztw.FittedRule):
        message = f"^thresholds 'risk_controlled': the rule {rule} is fitted on the held-out samples"
        with pytest.raises(ztw.ZtwError, match=message):
            thresholds.candidates(choice, logits, labels, COST, kind)
        return
    found = thresholds.candidates(choice, logits, labels, COST, kind, points=200)
    assert found.parameter.dtype == found.thresholds.dtype == torch.float64
    assert found.parameter.dim() == 1
    assert found.thresholds.shape in [(len(found.parameter),), (len(found.parameter), 3)]
    assert found.thresholds.isfinite().all()
    curve = ztw.sweep(logits, labels, COST, kind, found.thresholds)
    assert curve.cost.diff().ge(-1e-12).all(), "from the cheapest to the most expensive"
    assert curve.cost[0] < 0.5 * curve.cost[-1]
    for index in (0, len(found.parameter) // 2, -1):
        exit_index, _ = simulate_exits(logits, thresholds.at(kind, found, index))
        assert COST[exit_index].mean().item() == pytest.approx(curve.cost[index].item())


@pytest.mark.parametrize("choice", list(THRESHOLDS))
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 2), (2, 1, 1), (3, 4, 2)])
def test_the_smallest_inputs(choice, shape):
    cost = torch.arange(1.0, shape[0] + 1)
    labels = torch.arange(shape[1]) % shape[2]  # risk_controlled needs every class
    for rule in THRESHOLD_RULES:
        kind = ztw.fit_rule(torch.randn(shape), labels, rule)
        if choice == "risk_controlled" and issubclass(kind, ztw.FittedRule):
            continue
        found = thresholds.candidates(choice, torch.randn(shape), labels, cost, kind)
        ztw.sweep(torch.randn(shape), labels, cost, kind, found.thresholds)


@pytest.mark.parametrize("choice", [name for name in THRESHOLDS if name != "shared"])
def test_patience_has_no_threshold(choice):
    logits, labels = draw(10, seed=0)
    message = f"thresholds '{choice}': the rule patience .*shared"
    with pytest.raises(ztw.ZtwError, match=message):
        thresholds.candidates(choice, logits, labels, COST, "patience")


def test_an_unknown_choice_names_the_known_ones():
    logits, labels = draw(10, seed=0)
    with pytest.raises(
        ztw.ZtwError, match=r"unknown way to choose thresholds 'nope'; known: shared, per_exit"
    ):
        thresholds.candidates("nope", logits, labels, COST, "max_softmax")


@pytest.mark.parametrize("rule", ztw.list_rules())
def test_shared_is_the_grid_of_the_rule(rule):
    logits, labels = draw(100, seed=1)
    kind = ztw.fit_rule(logits, labels, rule)
    found = thresholds.candidates("shared", logits, labels, COST, kind, points=50)
    grid = ztw.sweep(logits, labels, COST, kind, points=50).parameter
    assert found.thresholds.tolist() == found.parameter.tolist() == grid.tolist()


# --- per exit


def objective(curve, weight, full_cost):
    return curve.accuracy - weight * curve.cost / full_cost


@pytest.mark.parametrize("rule", THRESHOLD_RULES)
def test_per_exit_is_no_worse_than_shared_on_its_own_data(rule):
    logits, labels = draw(500, seed=2)
    kind = ztw.fit_rule(logits, labels, rule)
    found = thresholds.candidates("per_exit", logits, labels, COST, kind, points=100)
    shared = ztw.sweep(logits, labels, COST, kind, points=100)
    own = ztw.sweep(logits, labels, COST, kind, found.thresholds)
    gains = [
        float(objective(own, weight, COST[-1])[index] - objective(shared, weight, COST[-1]).max())
        for index, weight in enumerate(found.parameter.tolist())
    ]
    assert min(gains) >= -1e-9
    assert max(gains) > 0.003, "thresholds of their own must be worth something"


def test_per_exit_finds_the_best_thresholds_of_two_exits():
    # coordinate ascent is exact for one threshold, so compare with all possible thresholds
    logits, labels = draw(60, seed=3, exits=2)
    cost = COST[:2]
    scores = exit_scores(logits, ztw.MaxSoftmax)[0].unique()
    every = torch.cat([scores, scores[:1] - 0.01])[:, None]
    found = thresholds.candidates("per_exit", logits, labels, cost, "max_softmax")
    best = ztw.sweep(logits, labels, cost, "max_softmax", every)
    own = ztw.sweep(logits, labels, cost, "max_softmax", found.thresholds)
    for index, weight in enumerate(found.parameter.tolist()):
        here = objective(own, weight, cost[-1])[index].item()
        assert here == pytest.approx(objective(best, weight, cost[-1]).max().item(), abs=1e-9)


def test_per_exit_by_hand():
    # exit 1 is right on the two confident samples and wrong on the other two; the last exit is always right
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    logits = torch.stack([probs, torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])]).log()
    found = thresholds.candidates(
        "per_exit", logits, torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 2.0]), "max_softmax"
    )
    middle = ((found.parameter > 0.01) & (found.parameter < 1)).nonzero().flatten()
    torch.testing.assert_close(
        found.thresholds[middle, 0], torch.full((len(middle),), 0.75).double(), atol=1e-6, rtol=0
    )
    assert found.parameter[0] > 2  # half of the full cost is too much for at most one right prediction
    assert found.thresholds[0, 0] < 0.6
    assert found.parameter[-1] == 0


# --- allowed loss


def test_allowed_loss_by_hand():
    # exit 1: confidences .9 .8 .7 .6, right right wrong right; the 1, 2, 3, 4 most confident: accuracy 1, 1, 2/3, 3/4
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    logits = torch.stack([probs, probs]).log()
    found = thresholds.candidates(
        "allowed_loss", logits, torch.zeros(4).long(), torch.tensor([1.0, 2.0]), "max_softmax"
    )
    for eps, delta in zip(found.parameter.tolist(), found.thresholds[:, 0].tolist(), strict=True):
        if eps < 0.25:  # the two most confident samples, both right
            assert delta == pytest.approx(0.75, abs=1e-6)
        else:  # all samples, with accuracy 3/4
            assert delta < 0.6
    assert found.parameter[-1] == 0
    assert found.parameter[0] == 1


@pytest.mark.parametrize("rule", THRESHOLD_RULES)
def test_allowed_loss_is_the_plain_definition(rule):
    logits, labels = draw(80, seed=5)
    logits = logits.round()  # ties in confidence
    kind = ztw.fit_rule(logits, labels, rule)
    scores, correct = exit_scores(logits, kind), logits.argmax(-1) == labels
    found = thresholds.candidates("allowed_loss", logits, labels, COST, kind)
    sign = -1 if rule == "entropy" else 1
    for exit in range(3):
        accuracy = {
            float(delta): correct[exit][scores[exit] >= delta].double().mean().item()
            for delta in scores[exit].unique()
        }
        for eps, threshold in zip(found.parameter.tolist(), found.thresholds[:, exit].tolist(), strict=True):
            allowed = max(accuracy.values()) - eps - 1e-9
            delta = min(delta for delta, share in accuracy.items() if share >= allowed)
            assert torch.equal(scores[exit] > sign * threshold, scores[exit] >= delta)


# --- risk control


def risk(logits, labels, rule):
    """Return the share of samples that leave with a wrong prediction and that the last exit gets right."""
    _, answer_exit = simulate_exits(logits, rule)
    right = logits.argmax(-1) == labels
    return (right[-1] & ~right.gather(0, answer_exit[None])[0]).double().mean().item()


@pytest.mark.parametrize("rule", ["max_softmax", "entropy"])
def test_the_guarantee_holds_over_draws_of_held_out_data(rule):
    kind: Any = exit_rule(rule)
    everybody, answers = draw(8000, seed=6)
    choice = thresholds.RiskControlled(lowest=0.02, highest=0.1, steps=2)
    generator = torch.Generator().manual_seed(7)
    draws, chosen = 200, []
    for _ in range(draws):
        picks = torch.randint(8000, (300,), generator=generator)
        found = choice.candidates(everybody[:, picks], answers[picks], COST, rule, points=100)
        chosen.append(found.thresholds)
    grid, place = torch.stack(chosen).unique(return_inverse=True)
    true_risk = torch.tensor([risk(everybody, answers, kind(value)) for value in grid.tolist()])
    violated = (true_risk[place] > found.parameter).sum(0)
    # at most 10 % of 200 draws may fail, plus three standard deviations, 6 %
    assert (violated / draws).max() <= thresholds.DELTA + 0.064
    cost = ztw.sweep(everybody, answers, COST, rule, grid).cost[place[:, 0]]
    assert cost.max() < 0.6 * COST[-1], "10 % of risk must buy something in every draw"
    assert violated.sum() > 0, "a bound that never fails is not tight"


def test_risk_control_follows_its_definition():
    from scipy.stats import binom

    logits, labels = draw(300, seed=8)
    found = thresholds.candidates("risk_controlled", logits, labels, COST, "max_softmax")
    for index in range(0, len(found.parameter), 7):
        lost = round(300 * risk(logits, labels, thresholds.at("max_softmax", found, index)))
        eps = found.parameter[index].item()
        # Clopper-Pearson: if the risk is above eps, so few losses have a probability of at most delta
        nobody = found.thresholds[index] > 1
        assert nobody or binom.cdf(lost, 300, eps) <= thresholds.DELTA + 1e-9


def test_too_little_data_for_a_guarantee_lets_no_sample_leave():
    logits, labels = draw(20, seed=9)
    found = thresholds.candidates("risk_controlled", logits, labels, COST, "max_softmax")
    exit_index, _ = simulate_exits(100 * draw(500, seed=10)[0], thresholds.at("max_softmax", found, -1))
    assert exit_index.tolist() == [3] * 500


@pytest.mark.parametrize(
    ("left", "missing"), [([0], r"2 of 3 classes \(1, 2\)"), ([0, 2], r"1 of 3 classes \(1\)")]
)
def test_a_guarantee_without_samples_of_a_class_is_refused(left, missing):
    """Without held-out samples of a class, nothing is known about the risk on this class."""
    logits, labels = draw(300, seed=8)
    logits, labels = logits[..., :3], labels.clamp(max=2)
    picks = torch.isin(labels, torch.tensor(left)).nonzero().flatten()
    with pytest.raises(ztw.ZtwError, match=f"'risk_controlled': no held-out sample of {missing}") as caught:
        thresholds.candidates("risk_controlled", logits[:, picks], labels[picks], COST, "max_softmax")
    assert "\n" not in str(caught.value)
    thresholds.candidates("shared", logits[:, picks], labels[picks], COST, "max_softmax")


def test_max_softmax_or_best_without_early_exits_has_no_risk():
    logits, labels = draw(2000, seed=11)
    found = thresholds.candidates("risk_controlled", logits, labels, COST, "max_softmax_or_best")
    curve = ztw.sweep(logits, labels, COST, "max_softmax_or_best", found.thresholds)
    full = ztw.sweep(logits, labels, COST, "max_softmax_or_best", [2.0]).accuracy
    assert (full - curve.accuracy).le(found.parameter + 1e-9).all()
    assert curve.cost[found.parameter > 0.02].max() < COST[-1]
