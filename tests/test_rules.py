"""Every rule against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

import ztw
from ztw.rules import exit_scores

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


def test_entropy_of_a_certain_answer_is_zero():
    certain = torch.tensor([[[100.0, -math.inf, -100.0]]])
    assert exit_scores(certain, ztw.Entropy).tolist() == [[0.0]]


def test_patience_counts_consecutive_agreements_and_resets():
    answers = torch.tensor([[0, 1], [0, 0], [1, 0], [1, 0], [1, 1]])  # (5 exits, 2 samples)
    logits = torch.nn.functional.one_hot(answers, 2).float()
    assert exit_scores(logits, ztw.Patience).T.tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 2, 0]]


def test_patience_leaves_at_the_exit_that_ends_t_agreements():
    answers = torch.tensor([[0], [0], [1], [1], [1]])
    logits = torch.nn.functional.one_hot(answers, 2).float()
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


def test_patience_below_one_is_refused():
    with pytest.raises(ztw.ZtwError, match=r"patience 0: must be at least 1"):
        ztw.Patience(0)


def test_unknown_rule_names_the_known_ones():
    with pytest.raises(
        ztw.ZtwError, match=r"unknown exit rule 'nope'; known: max_softmax, entropy, patience"
    ):
        ztw.sweep(torch.zeros(1, 1, 2), torch.zeros(1).long(), torch.ones(1), "nope")
