"""Test that the contract finds wrong parts, and names the part in one line."""

from __future__ import annotations

import math
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


class NanWhereConfident(Margin):
    """0 / 0 if the probability of all other classes rounds to 0: such a sample never leaves."""

    @staticmethod
    def score(logits, state):
        p = logits.softmax(-1).amax(-1)
        return p * (1 - p) / (1 - p), ()


class InfinityLessInfinity(Margin):
    @staticmethod
    def score(logits, state):
        raised = logits.exp()
        return raised.sum(-1).log() - (raised.sum(-1) - raised.amax(-1)).log(), ()


class NoMaximumSubtracted(Margin):
    """A softmax whose exponentials overflow above 88 and are all 0 below -104."""

    @staticmethod
    def score(logits, state):
        return logits.exp().amax(-1) / logits.exp().sum(-1), ()


class Vanishing(Margin):
    """Every exponential is 0 for log-probabilities far below 0, as ensembles have them."""

    @staticmethod
    def score(logits, state):
        return (logits.exp().amax(-1) + 1e-9).log() - logits.exp().sum(-1).log(), ()


class LogOdds(ztw.ThresholdRule):
    top = 20.0

    @staticmethod
    def score(logits, state):
        return logits.softmax(-1).amax(-1).logit(), ()

    @staticmethod
    def worst(num_classes):
        return math.log(1 / (num_classes - 1))


class SignTurned(ztw.Entropy):
    """The entropy itself instead of its negative: uncertain samples leave first."""

    top = math.log(5)

    @staticmethod
    def score(logits, state):
        return -ztw.Entropy.score(logits, state)[0], ()


class SecondLargest(Margin):
    @staticmethod
    def score(logits, state):
        return logits.softmax(-1).topk(2).values[:, 1], ()


class FallsBeyond(Margin):
    """A score that rises with the confidence up to 0.9, then falls: the most confident samples never leave early."""

    @staticmethod
    def score(logits, state):
        p = logits.softmax(-1).amax(-1)
        return torch.where(p > 0.9, 1 - p, p), ()


class TurnedMean(Margin):
    """A score with a state: the mean of 1 - confidence over the exits so far."""

    @staticmethod
    def score(logits, state):
        total, exits = state or (torch.zeros(len(logits)), torch.zeros(len(logits)))
        total = total + 1 - logits.softmax(-1).amax(-1)
        return total / (exits + 1), (total, exits + 1)


class Mean(Margin):
    """The largest mean probability over the exits so far."""

    @staticmethod
    def score(logits, state):
        total, exits = state or (torch.zeros_like(logits), torch.zeros(len(logits)))
        total, exits = total + logits.softmax(-1), exits + 1
        return (total / exits[:, None]).amax(-1), (total, exits)


class Settled(Margin):
    """A score: 1 - the change of the probabilities since the previous exit; at the first exit, the confidence."""

    @staticmethod
    def score(logits, state):
        p = logits.softmax(-1)
        change = (p - state[0]).abs().sum(-1) / 2 if state else 1 - p.amax(-1)
        return 1 - change, (p,)


class Difference(ztw.ThresholdRule):
    """The margin of the raw logits, which has no upper bound."""

    top = 100.0

    @staticmethod
    def score(logits, state):
        largest = logits.topk(2).values
        return largest[:, 0] - largest[:, 1], ()

    @staticmethod
    def worst(num_classes):
        return 0.0


class Surely(ztw.Patience):
    """Patience that counts only agreements with a confidence above 0.3."""

    @staticmethod
    def score(logits, state):
        agreements, state = ztw.Patience.score(logits, state)
        return torch.where(logits.softmax(-1).amax(-1) > 0.3, agreements, -1.0), state

    @property
    def bound(self):
        return self.t - 0.5 if self.t else -2.0


class Unnormalised(Fitted):
    def forward(self, logits):
        return super().forward(logits) + 1


class Forgetful(Fitted):
    def __init__(self, exits, num_classes, include_final=True):
        super().__init__(exits, num_classes, include_final)
        self.seen = torch.zeros(num_classes)

    def fit_exit(self, exit, log_probs, labels):
        self.seen = torch.arange(self.num_classes).float()

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
    """An ensemble whose `forward` is not the sum of its members."""

    def member(self, logits):
        return logits.log_softmax(-1)

    def linear(self):
        return torch.ones(self.exits, self.exits).tril(), torch.zeros(self.exits, self.num_classes)

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


def half_head(shape, num_classes, previous, size, options):
    return linear_head(shape, num_classes - 1, previous, size, options)


def deaf_head(shape, num_classes, previous, size, options):
    head = linear_head(shape, num_classes, previous, size, options)
    head.unused = nn.Linear(1, 1)
    return head


def renamed(name, *rest):
    return two_convolutions("other", *rest)


CASES: list[tuple[str, Any, dict, str]] = [
    ("rule", OfBatch, {}, "scores depend on the other samples"),
    ("rule", OneGrid, {}, "leave at exit 1 at the first value of grid"),
    ("rule", Failing, {}, r"KeyError: 'no such thing' \(test_testing.py, line \d+\)"),
    ("rule", OpenBound, {}, "`sweep` and `simulate_exits` disagree"),
    ("rule", NanWhereConfident, {}, "score is nan on logits from -30 to 0, must be finite"),
    ("rule", InfinityLessInfinity, {}, "score is (nan|inf) on logits .* must be finite"),
    ("rule", NoMaximumSubtracted, {}, "score is nan on logits from 10000 to 10000, must be finite"),
    ("rule", Vanishing, {}, "score is .* on logits .* must be finite"),
    ("rule", LogOdds, {}, "score is inf on logits from -30 to 0, must be finite"),
    ("rule", SignTurned, {}, "a higher confidence delays an exit: at .* exit 4 instead of 1"),
    ("rule", SecondLargest, {}, "a higher confidence delays an exit"),
    ("rule", FallsBeyond, {}, "a higher confidence delays an exit"),
    ("rule", TurnedMean, {}, "a higher confidence delays an exit"),
    ("ensemble", Unnormalised, {}, "log-probabilities are not normalised"),
    ("ensemble", Forgetful, {}, "state_dict .*register_buffer"),
    ("ensemble", Centred, {}, "depend on the other samples"),
    ("ensemble", Clairvoyant, {}, "exit 1 depends on later exits"),
    ("ensemble", Otherwise, {}, "exit by exit"),
    ("thresholds", FromTheEnd, {}, "from the cheapest to the most expensive"),
    ("thresholds", Single, {}, "thresholds is torch.float32, must be float64"),
    ("thresholds", Trusting, {}, "logits with NaN must raise ZtwError"),
    ("head", half_head, {}, r"logits torch.float32 \(3, 4\), must be float32 \(N, classes\)"),
    ("head", deaf_head, {}, "no finite gradient for unused.weight, unused.bias"),
    ("backbone", two_convolutions, {"blocks": 3}, "has 2 stages, must be 3"),
    ("backbone", renamed, {"blocks": 2}, "'other', must be 'own'"),
]


@pytest.mark.parametrize(("kind", "part", "facts", "message"), CASES)
def test_wrong_parts_are_named(kind, part, facts, message):
    ztw.register(kind, "own", part, **facts)
    with pytest.raises(ztw.ZtwError, match=f"^{kind} 'own': .*({message})") as caught:
        testing.check_registered()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [Margin, Mean, Settled, Difference, Surely])
def test_a_rule_may_have_a_state_or_no_upper_end(part):
    ztw.register("rule", "own", part)
    testing.check_rule("own")


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
