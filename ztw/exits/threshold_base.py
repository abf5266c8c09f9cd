"""Base class of the ways to choose thresholds, and what they have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.exits.logits import check_logits
from ztw.exits.rules import ExitRule, ThresholdRule, exit_rule, rule_name
from ztw.exits.sweep import scored

RuleKind = str | type[ExitRule]  # name of a rule, or its class
TIE = 1e-9  # objectives that differ by less are equal


@dataclass(frozen=True)
class Candidates:
    """Candidate thresholds, from the cheapest to the most expensive.

    Attributes:
        parameter: float64 (T,), the setting that gave each candidate, e.g. an allowed loss of accuracy.
        thresholds: float64, one for all exits (T,), or one per exit but the last (T, K - 1).

    Example:
        >>> import torch, ztw
        >>> ztw.Candidates(parameter=torch.tensor([0.0, 1.0]), thresholds=torch.tensor([0.5, 0.9])).thresholds
        tensor([0.5000, 0.9000])
    """

    parameter: Tensor
    thresholds: Tensor


class ThresholdChoice(ABC):
    """Base class of the ways to choose thresholds. A subclass implements `candidates`.

    Example:
        >>> import torch, ztw
        >>> class Two(ztw.ThresholdChoice):
        ...     def candidates(self, logits, labels, cost, rule, points=1000):
        ...         return ztw.Candidates(torch.tensor([0.5, 0.9]).double(), torch.tensor([0.5, 0.9]).double())
        >>> Two().candidates(None, None, None, "max_softmax").thresholds.shape
        torch.Size([2])
    """

    @abstractmethod
    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: RuleKind, points: int = 1000
    ) -> Candidates:
        """Compute candidates from held-out data.

        Args:
            logits: (K, N, C), of single exits or an ensemble.
            labels: int (N,).
            cost: (K,), cumulative multiply-accumulate operations (MACs).
            rule: name of an exit rule, see `list_rules`; or its class, which a fitted rule always is.
            points: resolution of a grid of thresholds.

        Returns:
            Candidates, from which a budget or an allowed loss selects one.

        Raises:
            ZtwError: for invalid logits, labels or costs, an unknown rule, or a rule without a threshold.
        """


@dataclass(frozen=True)
class HeldOut:
    """Scores and correct predictions of held-out data.

    Args:
        kind: class of the rule.
        scores, correct: (K, N), see `scored`.
        relative_cost: float64 (K,), as a share of the last exit's cost.
        num_classes: C.
    """

    kind: type[ThresholdRule]
    scores: Tensor
    correct: Tensor
    relative_cost: Tensor
    num_classes: int

    @property
    def closed_bound(self) -> float:
        """A bound that no score exceeds, not even by rounding."""
        return self.kind.top + 1.0


def prepare_held_out(choice: str, logits: Tensor, labels: Tensor, cost: Tensor, rule: RuleKind) -> HeldOut:
    """Compute the scores and correct predictions of held-out data; see `ThresholdChoice.candidates`.

    `choice` is the name in THRESHOLDS, for error messages.
    """
    kind = exit_rule(rule)
    if not issubclass(kind, ThresholdRule):
        raise ZtwError(f"thresholds {choice!r}: the rule {rule_name(kind)} has no threshold; use 'shared'")
    logits, labels, cost = check_logits(logits, labels, cost)
    return HeldOut(kind, *scored(logits, labels, kind), cost / cost[-1], logits.shape[2])


def midway(upper: Tensor, lower: Tensor) -> Tensor:
    """Return bounds that scores `upper` exceed and smaller scores `lower` do not, even for neighbouring floats."""
    middle = (upper + lower) / 2
    return torch.where(middle < upper, middle, lower)


def just_below(score: Tensor) -> Tensor:
    """Return bounds that these scores just exceed."""
    return score - 1e-6 * score.abs().clamp(min=1.0)


def geometric(start: float, end: float, steps: int) -> Tensor:
    """Return `steps` values in geometric progression, from exactly `start` to exactly `end`."""
    values = torch.logspace(math.log10(start), math.log10(end), steps, dtype=torch.float64)
    values[0], values[-1] = start, end
    return values
