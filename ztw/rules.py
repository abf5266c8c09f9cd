"""Exit rules: a score per exit and the bound it must pass; `infer` and `sweep` share them.

A sample leaves at the first exit whose score is STRICTLY greater than the rule's bound; the last
exit takes the rest. A new rule is one class here and one entry in RULES.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ztw.errors import ZtwError, unknown

State = tuple[Tensor, ...]  # what a rule remembers of earlier exits, each (N, ...)


class ExitRule(ABC):
    """One rule at one parameter."""

    @staticmethod
    @abstractmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Score one exit.

        logits: (N, C) of this exit, normalised or not; state: what `score` returned at the previous
        exit, () at the first. Returns scores (N,) and the state for the next exit.
        """

    @property
    @abstractmethod
    def bound(self) -> float:
        """A sample leaves where its score is strictly greater than this."""

    @staticmethod
    @abstractmethod
    def grid(scores: Tensor, points: int) -> Tensor:
        """The parameters (T,) to sweep, from the cheapest to the most cautious, for scores (K, N)."""

    def leaves(self, score: Tensor) -> Tensor:
        """bool (N,): which samples leave; compared in float64, as `sweep` does."""
        return score.double() > self.bound


def _threshold_grid(scores: Tensor, upper: float, points: int) -> Tensor:
    """Even steps from the smallest score to `upper` and as many quantiles, below which everything leaves.

    The even steps are the paper's; confidences crowd near 1, where only the quantiles resolve them.
    """
    flat = scores.double().flatten().sort().values
    steps = torch.linspace(float(flat[0]), upper, points, dtype=torch.float64)
    quantiles = flat[torch.linspace(0, len(flat) - 1, points).long()]
    everything = flat[:1] - max(1e-6, 1e-6 * abs(float(flat[0])))
    return torch.cat([everything, steps, quantiles]).unique()


@dataclass(frozen=True)
class MaxSoftmax(ExitRule):
    """Leave when the largest softmax probability exceeds `threshold` (SDN 2019, ZTW 2021)."""

    threshold: float

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Largest probability (N,)."""
        return logits.log_softmax(-1).max(-1).values.exp(), ()

    @property
    def bound(self) -> float:
        """The threshold."""
        return float(self.threshold)

    @staticmethod
    def grid(scores: Tensor, points: int) -> Tensor:
        """Thresholds from just below the smallest confidence to 1, ascending."""
        # rounding can lift a confidence above 1, and the last threshold must let nothing pass
        return _threshold_grid(scores, max(1.0, float(scores.max())), points)


@dataclass(frozen=True)
class Entropy(ExitRule):
    """Leave when the softmax entropy (natural logarithm) is below `threshold` (BranchyNet 2016)."""

    threshold: float

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Negative entropy (N,)."""
        return -torch.special.entr(logits.softmax(-1)).sum(-1), ()

    @property
    def bound(self) -> float:
        """The negative threshold."""
        return -float(self.threshold)

    @staticmethod
    def grid(scores: Tensor, points: int) -> Tensor:
        """Thresholds from just above the largest entropy to 0, descending."""
        return 0.0 - _threshold_grid(scores, max(0.0, float(scores.max())), points)  # never -0.0


@dataclass(frozen=True)
class Patience(ExitRule):
    """Leave at the first exit that ends `t` consecutive agreements of the argmax (PABEE 2020)."""

    t: int

    def __post_init__(self) -> None:
        if self.t < 1:
            raise ZtwError(f"patience {self.t!r}: must be at least 1")

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Number of consecutive agreements this exit ends (N,); 0 at the first exit and after a change."""
        answer = logits.argmax(-1)
        if not state:
            return torch.zeros_like(answer, dtype=torch.float64), (answer, torch.zeros_like(answer))
        previous, agreements = state
        agreements = torch.where(answer == previous, agreements + 1, 0)
        return agreements.double(), (answer, agreements)

    @property
    def bound(self) -> float:
        """Half a step below t, so that t agreements pass."""
        return self.t - 0.5

    @staticmethod
    def grid(scores: Tensor, points: int) -> Tensor:
        """1 ... K-1; the last of them runs the whole network."""
        return torch.arange(1, max(2, len(scores)), dtype=torch.float64)


RULES: dict[str, type[ExitRule]] = {"max_softmax": MaxSoftmax, "entropy": Entropy, "patience": Patience}


def exit_rule(name: str) -> type[ExitRule]:
    """The class of a rule; raises ZtwError for an unknown name."""
    if name not in RULES:
        raise unknown("exit rule", name, RULES)
    return RULES[name]


def exit_scores(logits: Tensor, rule: type[ExitRule]) -> Tensor:
    """Scores float64 (K, N) of a rule at every exit, for logits (K, N, C)."""
    scores: list[Tensor] = []
    state: State = ()
    for exit_logits in logits:
        score, state = rule.score(exit_logits, state)
        scores.append(score.double())
    return torch.stack(scores)
