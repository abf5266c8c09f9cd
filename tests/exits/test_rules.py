"""Test every rule against hand-computed values."""

from __future__ import annotations

import json
import math

import pytest
import torch

import ztw
from ztw.exits.rules import MaxSoftmaxOrBest, describe_rule, exit_scores, rule_from
from ztw.exits.sweep import simulate_exits

COST = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def log(rows):
    return torch.tensor(rows, dtype=torch.float64).log().float()


# three exits, two samples, two classes
PROBS = [
    [[0.6, 0.4], [0.5, 0.5]],
    [[0.9, 0.1], [0.2, 0.8]],
    [[0.3, 0.7], [0.1, 0.9]],
]


def test_max_softmax_score_is_the_largest_probability():
    scores = exit_scores(log(PROBS), ztw.MaxSoftmax)
    expected = torch.tensor([[0.6, 0.5], [0.9, 0.8], [0.7, 0.9]], dtype=torch.float64)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


def test_entropy_is_natural_and_negated():
    scores = exit_scores(log(PROBS), ztw.Entropy)
    by_hand = 0.6 * math.log(0.6) + 0.4 * math.log(0.4)
    assert scores[0, 0].item() == pytest.approx(by_hand, abs=1e-6)
    assert scores[0, 1].item() == pytest.approx(-math.log(2), abs=1e-6)


def test_entropy_of_a_certain_prediction_is_zero():
    certain = torch.tensor([[[100.0, -math.inf, -100.0]]])
    assert exit_scores(certain, ztw.Entropy).tolist() == [[0.0]]


def test_patience_counts_consecutive_agreements_and_resets():
    predicted = torch.tensor([[0, 1], [0, 0], [1, 0], [1, 0], [1, 1]])  # (5 exits, 2 samples)
    logits = torch.nn.functional.one_hot(predicted, 2).float()
    assert exit_scores(logits, ztw.Patience).T.tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 2, 0]]


def test_patience_leaves_at_the_exit_that_ends_t_agreements():
    predicted = torch.tensor([[0], [0], [1], [1], [1]])
    logits = torch.nn.functional.one_hot(predicted, 2).float()
    cost = torch.arange(1.0, 6.0)
    curve = ztw.sweep(logits, torch.tensor([1]), cost, "patience", [1, 2, 3])
    assert curve.cost.tolist() == [2.0, 5.0, 5.0]
    assert curve.accuracy.tolist() == [0.0, 1.0, 1.0]


def test_passing_is_strict():
    logits = torch.zeros(2, 1, 2)  # confidence exactly 1/2, entropy exactly ln 2 in float
    confidence = exit_scores(logits, ztw.MaxSoftmax)[0, 0].item()
    entropy = -exit_scores(logits, ztw.Entropy)[0, 0].item()
    for rule, at in (("max_softmax", confidence), ("entropy", entropy)):
        curve = ztw.sweep(logits, torch.tensor([0]), COST[:2], rule, [at])
        assert curve.exit_fraction.tolist() == [[0.0, 1.0]]
    below = ztw.sweep(logits, torch.tensor([0]), COST[:2], "max_softmax", [confidence - 1e-9])
    assert below.exit_fraction.tolist() == [[1.0, 0.0]]
    above = ztw.sweep(logits, torch.tensor([0]), COST[:2], "entropy", [entropy + 1e-9])
    assert above.exit_fraction.tolist() == [[1.0, 0.0]]


def test_a_threshold_per_exit_by_hand():
    # confidences of sample 0: .6 .9 .7, of sample 1: .5 .8 .9
    for thresholds, expected in (([0.7, 0.85], [1, 2]), ([0.55, 0.75], [0, 1]), ([0.7, 0.95, 0.0], [2, 2])):
        exit_index, answer_exit = simulate_exits(log(PROBS), ztw.MaxSoftmax(thresholds))
        assert exit_index.tolist() == answer_exit.tolist() == expected
    entropies = (-exit_scores(log(PROBS), ztw.Entropy)).tolist()
    exit_index, _ = simulate_exits(log(PROBS), ztw.Entropy([entropies[0][0] + 1e-3, entropies[1][1] + 1e-3]))
    assert exit_index.tolist() == [0, 1]


def test_if_no_exit_passes_the_most_confident_one_predicts():
    rule = MaxSoftmaxOrBest(0.95)
    assert [item.tolist() for item in simulate_exits(log(PROBS), rule)] == [[2, 2], [1, 2]]
    labels = torch.tensor([0, 1])  # sample 0: right at its most confident exit, wrong at the last
    best = ztw.sweep(log(PROBS), labels, COST, "max_softmax_or_best", [0.85, 0.95])
    last = ztw.sweep(log(PROBS), labels, COST, "max_softmax", [0.85, 0.95])
    assert best.accuracy.tolist() == [1.0, 1.0]
    assert last.accuracy.tolist() == [1.0, 0.5]
    assert best.cost.tolist() == last.cost.tolist() == [2.5, 3.0]


def test_the_first_of_equally_confident_exits_predicts():
    flat = torch.zeros(3, 1, 2)
    assert [item.tolist() for item in simulate_exits(flat, MaxSoftmaxOrBest(0.9))] == [[2], [0]]


@pytest.mark.parametrize("kind", [ztw.MaxSoftmax, MaxSoftmaxOrBest, ztw.Entropy])
def test_a_threshold_per_exit_is_one_rule(kind):
    per_exit = kind(torch.tensor([0.5, 0.25]))
    assert per_exit == kind([0.5, 0.25]) == kind((0.5, 0.25))
    assert per_exit.bounds(3).tolist() == [kind(0.5).bound, kind(0.25).bound]
    assert per_exit.bounds(2).tolist() == [kind(0.5).bound]  # the last of K is ignored
    assert kind(0.5).bounds(3).tolist() == [kind(0.5).bound] * 2


@pytest.mark.parametrize("exits", [2, 5])
def test_thresholds_for_another_number_of_exits_are_refused(exits):
    rule = ztw.MaxSoftmax([0.5] * 3)
    message = rf"MaxSoftmax: 3 thresholds, must be one or {exits - 1} \({exits} exits\)"
    with pytest.raises(ztw.ZtwError, match=message):
        simulate_exits(torch.zeros(exits, 1, 2), rule)
    with pytest.raises(ztw.ZtwError, match=message):
        ztw.sweep(
            torch.zeros(exits, 1, 2),
            torch.tensor([0]),
            torch.arange(1.0, exits + 1),
            "max_softmax",
            torch.full((1, 3), 0.5),
        )


@pytest.mark.parametrize("threshold", [math.nan, [0.5, math.nan], [[0.5]]])
def test_a_threshold_must_be_a_number(threshold):
    with pytest.raises(ztw.ZtwError, match="must be a number or one number per exit"):
        ztw.Entropy(threshold)


def test_patience_has_no_parameter_per_exit():
    with pytest.raises(ztw.ZtwError, match=r"shape \(1, 2\), must be \(T,\) for Patience"):
        ztw.sweep(log(PROBS), torch.tensor([0, 1]), COST, "patience", torch.ones(1, 2))


def test_patience_below_zero_is_refused():
    with pytest.raises(ztw.ZtwError, match=r"patience -1: must be a whole number of at least 0"):
        ztw.Patience(-1)


def test_patience_starts_where_everything_leaves_at_the_first_exit(logits, labels, cost):
    """As in the released comparison, whose cheapest point (p = 1) costs as much as exit 1."""
    curve = ztw.sweep(logits, labels, cost, "patience")
    assert curve.parameter.tolist() == [0, 1, 2, 3]
    assert curve.cost[0] == cost[0]
    assert curve.cost[-1] == cost[-1], "t = K - 1 runs the whole network"
    assert curve.accuracy[0] == ztw.exit_accuracy(logits, labels)[0]
    exit_index, _ = ztw.simulate_exits(logits, ztw.Patience(0))
    assert (exit_index == 0).all()


def test_unknown_rule_names_the_known_ones():
    with pytest.raises(
        ztw.ZtwError,
        match=r"unknown exit rule 'nope'; known: max_softmax, max_softmax_or_best, entropy, patience, fixed_exit",
    ):
        ztw.sweep(torch.zeros(1, 1, 2), torch.zeros(1).long(), torch.ones(1), "nope")


@pytest.mark.parametrize(
    "rule",
    [
        ztw.MaxSoftmax(0.1 + 0.2),
        ztw.MaxSoftmaxOrBest([0.9, 1 / 3]),
        ztw.Entropy(0.5),
        ztw.Patience(2),
    ],
)
def test_a_rule_survives_json(rule):
    facts = json.loads(json.dumps(describe_rule(rule)))
    again = rule_from(facts)
    assert again == rule
    assert type(again) is type(rule)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"threshold": 1}, "must be a mapping .*rule"),
        ({"rule": "nope"}, "unknown exit rule 'nope'"),
        ({"rule": "max_softmax"}, r"max_softmax: has parameters \[\], must be threshold"),
        ({"rule": "patience", "t": 1, "x": 2}, "must be t"),
        ({"rule": "entropy", "threshold": "0.5"}, "threshold is '0.5', must be a number"),
        ({"rule": "entropy", "threshold": [[1.0]]}, "must be a number or one number per exit"),
        ({"rule": "patience", "t": [1]}, r"patience \[1\]: must be a whole number"),
        ({"rule": "patience", "t": -1}, "patience -1: must be a whole number of at least 0"),
    ],
)
def test_wrong_descriptions_of_rules(facts, message):
    with pytest.raises(ztw.ZtwError, match=message):
        rule_from(facts)


def test_a_rule_outside_the_table_is_not_described():
    class Mine(ztw.MaxSoftmax):
        pass

    with pytest.raises(ztw.ZtwError, match="unknown exit rule 'Mine'; known: MaxSoftmax, "):
        describe_rule(Mine(0.5))
