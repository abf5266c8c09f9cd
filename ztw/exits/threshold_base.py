"""What every way of choosing thresholds is, and the held-out data as the ways need them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.exits.logits import check_logits
from ztw.exits.rules import ThresholdRule, exit_rule
from ztw.exits.sweep import scored

TIE = 1e-9  # sums of gains closer than this are equal


@dataclass(frozen=True)
class Candidates:
    """What a way of choosing thresholds offers, from the cheapest to the most cautious.

    parameter: float64 (T,), what the way varies; thresholds: float64, the same for all exits (T,) or
    one per exit but the last (T, K - 1).
    """

    parameter: Tensor
    thresholds: Tensor


class ThresholdChoice(ABC):
    """One way of choosing thresholds."""

    @abstractmethod
    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
    ) -> Candidates:
        """Candidates from held-out data.

        logits: (K, N, C), of single exits or ensembles; labels: int64 (N,); cost: (K,) cumulative
        MACs; rule: a name of RULES; points: how fine a shared grid is. Raises ZtwError for malformed
        input, an unknown rule, or a rule without a threshold where the way needs one.
        """


@dataclass(frozen=True)
class HeldOut:
    """Held-out data as a way of choosing needs it.

    kind: the rule; scores float64 and correct bool (K, N), see `scored`; relative_cost: float64 (K,),
    relative to the last exit's; num_classes: C.
    """

    kind: type[ThresholdRule]
    scores: Tensor
    correct: Tensor
    relative_cost: Tensor
    num_classes: int

    @property
    def closed_bound(self) -> float:
        """A bound that nothing passes, on other data either: rounding lifts no score this high."""
        return self.kind.top + 1.0


def prepare_held_out(choice: str, logits: Tensor, labels: Tensor, cost: Tensor, rule: str) -> HeldOut:
    """Held-out data for a way of choosing, `choice`; the arguments are those of `ThresholdChoice.candidates`.

    Raises ZtwError for malformed input, an unknown rule, or one without a threshold.
    """
    kind = exit_rule(rule)
    if not issubclass(kind, ThresholdRule):
        raise ZtwError(f"thresholds {choice!r}: the rule {rule} has none; use shared")
    logits, labels, cost = check_logits(logits, labels, cost)
    return HeldOut(kind, *scored(logits, labels, kind), cost / cost[-1], logits.shape[2])


def midway(upper: Tensor, lower: Tensor) -> Tensor:
    """Bounds that `upper` passes and the smaller `lower` does not, even where they are neighbours."""
    middle = (upper + lower) / 2
    return torch.where(middle < upper, middle, lower)


def just_below(score: Tensor) -> Tensor:
    """Bounds just below the smallest score seen, so that it passes."""
    return score - 1e-6 * score.abs().clamp(min=1.0)


def geometric(start: float, end: float, steps: int) -> Tensor:
    """`steps` values in equal ratios, the first and the last exactly as given."""
    values = torch.logspace(math.log10(start), math.log10(end), steps, dtype=torch.float64)
    values[0], values[-1] = start, end
    return values
