"""The contract finds what breaks it, in one line that names the part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_registration import Fitted, Half, Margin, linear_head, two_convolutions
from torch import nn

import ztw
from ztw import testing


class OfBatch(Margin):
    @staticmethod
    def score(logits, state):
        return logits.softmax(-1).amax(-1) - logits.mean(), ()


class OneGrid(Margin):
    @classmethod
    def grid(cls, scores, points):
        return torch.tensor([0.5], dtype=torch.float64)


class Failing(Margin):
    @staticmethod
    def score(logits, state):
        raise KeyError("no such thing")


class OpenBound(Margin):
    @property
    def bound(self):
        return super().bound if isinstance(self.threshold, tuple) else -10.0


class Unnormalised(Fitted):
    def forward(self, logits):
        return super().forward(logits) + 1


class Forgetful(Fitted):
    def __init__(self, exits, classes, include_final=True):
        super().__init__(exits, classes, include_final)
        self.seen = torch.zeros(classes)

    def fit_exit(self, exit, log_probs, labels):
        self.seen = torch.arange(self.classes).float()

    def combine(self, log_probs):
        return log_probs.mean(0) + self.seen


class Centred(ztw.Ensemble):
    def combine(self, log_probs):
        return log_probs.mean(0) - log_probs.mean((0, 1))


class Clairvoyant(ztw.Ensemble):
    def combine(self, log_probs):
        return log_probs.mean(0)

    def forward(self, logits):
        together = logits.log_softmax(-1).clamp(min=-50).mean(0, keepdim=True)
        return together.expand_as(logits).log_softmax(-1)


class Otherwise(ztw.LinearEnsemble):
    """As a whole it is not what it adds up."""

    def member(self, logits):
        return logits.log_softmax(-1)

    def linear(self):
        return torch.ones(self.exits, self.exits).tril(), torch.zeros(self.exits, self.classes)

    def finish(self, total):
        return total

    def forward(self, logits):
        return logits.log_softmax(-1).clamp(min=-50).log_softmax(-1)


class FromTheEnd(Half):
    def candidates(self, *arguments, **options):
        found = super().candidates(*arguments, **options)
        return ztw.Candidates(found.parameter.flip(0), found.thresholds.flip(0))


class Single(Half):
    def candidates(self, *arguments, **options):
        found = super().candidates(*arguments, **options)
        return ztw.Candidates(found.parameter, found.thresholds.float())


class Trusting(ztw.ThresholdChoice):
    def candidates(self, logits, labels, cost, rule, points=1000):
        return ztw.Candidates(*[torch.tensor([0.5], dtype=torch.float64)] * 2)


def half_head(shape, classes, previous, size, options):
    return linear_head(shape, classes - 1, previous, size, options)


def deaf_head(shape, classes, previous, size, options):
    head = linear_head(shape, classes, previous, size, options)
    head.unused = nn.Linear(1, 1)
    return head


def renamed(name, *rest):
    return two_convolutions("other", *rest)


CASES: list[tuple[str, Any, dict, str]] = [
    ("rule", OfBatch, {}, "score depends on which samples are in the batch"),
    ("rule", OneGrid, {}, "at the first parameter of its grid not all leave at exit 1"),
    ("rule", Failing, {}, r"KeyError: 'no such thing' \(test_testing.py, line \d+\)"),
    ("rule", OpenBound, {}, "`sweep` and `decide` disagree"),
    ("ensemble", Unnormalised, {}, "its log-probabilities are not normalised"),
    ("ensemble", Forgetful, {}, "what is fitted is not in its state_dict: use register_buffer"),
    ("ensemble", Centred, {}, "an answer depends on which samples are in the batch"),
    ("ensemble", Clairvoyant, {}, "exit 1 sees exits after it"),
    ("ensemble", Otherwise, {}, "exit by exit .* otherwise than all at once"),
    ("thresholds", FromTheEnd, {}, "candidates do not run from the cheapest to the most cautious"),
    ("thresholds", Single, {}, "thresholds is torch.float32, must be float64"),
    ("thresholds", Trusting, {}, "logits that are NaN are not refused"),
    ("head", half_head, {}, r"logits torch.float32 \(3, 4\), must be float32 \(N, classes\)"),
    ("head", deaf_head, {}, "no finite gradient for unused.weight, unused.bias"),
    ("backbone", two_convolutions, {"blocks": 3}, "has 2 stages, must be its 3 blocks"),
    ("backbone", renamed, {"blocks": 2}, "calls itself 'other', must be 'own'"),
]


@pytest.mark.parametrize(("kind", "part", "facts", "message"), CASES)
def test_what_breaks_the_contract_is_named(kind, part, facts, message):
    ztw.register(kind, "own", part, **facts)
    with pytest.raises(ztw.ZtwError, match=f"^{kind} 'own': .*({message})") as caught:
        testing.check_registered()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["rule", "ensemble", "head", "thresholds", "backbone", "dataset"])
def test_an_unknown_part_is_named(kind):
    with pytest.raises(ztw.ZtwError, match=r"unknown .* 'nope'; known: "):
        getattr(testing, f"check_{kind}")("nope")


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    testing.check_rule("entropy")
    testing.check_head("pool")
    testing.check_backbone("resnet8")
    assert torch.equal(before, torch.get_rng_state())
