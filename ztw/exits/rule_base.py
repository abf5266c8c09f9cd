"""Base classes of exit rules: a score per exit, and the bound it must exceed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.tensors import as_tensor

# A threshold may lie this far beyond the best score, so that no sample passes it in spite of rounding.
BEYOND = 1.0
State = tuple[Tensor, ...]  # tensors (N, ...) that a rule passes from exit to exit


class ExitRule(ABC):
    """Base class of exit rules. An instance holds the rule's parameter.

    A sample leaves at the first exit where its score is STRICTLY greater than the bound. All remaining samples leave
    at the last exit.

    Attributes:
        best_answers: True = for a sample that leaves at the last exit, the exit with the largest score predicts (on a
            tie, the first such exit). False = the exit where a sample leaves always predicts.
        single: True = all samples leave at one exit, `only_exit`. Then `infer` and `export_onnx` compute no other exit.

    Example:
        >>> import ztw
        >>> ztw.MaxSoftmax(0.5).bounds(exits=3)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    best_answers: ClassVar[bool] = False
    single: ClassVar[bool] = False

    @property
    def only_exit(self) -> int | None:
        """For a rule with `single`, the number of the exit at which all samples leave, from 1; else None."""
        return None

    @staticmethod
    @abstractmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute the scores of one exit.

        Args:
            logits: (N, C) of the exit, normalised or not.
            state: returned by `score` at the previous exit; () at the first exit.

        Returns:
            Scores (N,), and the state for the next exit.
        """

    @classmethod
    def score_at(cls, exit: int, logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute the scores of an exit, from 0. They depend on its number only for a `FittedRule`; see `score`."""
        return cls.score(logits, state)

    @property
    @abstractmethod
    def bound(self) -> float | tuple[float, ...]:
        """The bound that scores must exceed, or a tuple with one bound per exit."""

    @staticmethod
    @abstractmethod
    def grid(scores: Tensor, points: int) -> Tensor:
        """Return parameters (T,) to sweep, from the cheapest to the most expensive.

        Args:
            scores: float64 (K, N).
            points: resolution of the grid.
        """

    def bounds(self, exits: int) -> Tensor:
        """Return the bounds float64 (K - 1,) of all exits but the last; exits: their number K.

        Raises:
            ZtwError: if the rule has thresholds for another number of exits.
        """
        bound = self.bound
        if not isinstance(bound, tuple):
            return torch.full((exits - 1,), bound, dtype=torch.float64)
        if len(bound) not in (exits - 1, exits):
            name = type(self).__name__
            raise ZtwError(f"{name}: {len(bound)} thresholds, must be one or {exits - 1} ({exits} exits)")
        return torch.tensor(bound[: exits - 1], dtype=torch.float64)


def _threshold_grid(scores: Tensor, upper: float, points: int) -> Tensor:
    """Return even steps from the smallest score to `upper`, as many quantiles, and a value below all scores.

    The even steps are the paper's. The quantiles are needed because most confidences lie near 1.
    """
    flat = scores.double().flatten().sort().values
    steps = torch.linspace(float(flat[0]), upper, points, dtype=torch.float64)
    quantiles = flat[torch.linspace(0, len(flat) - 1, points).long()]
    everything = flat[:1] - max(1e-6, 1e-6 * abs(float(flat[0])))
    return torch.cat([everything, steps, quantiles]).unique()


@dataclass(frozen=True)
class ThresholdRule(ExitRule):
    """Base class of rules that compare a score with a threshold.

    A subclass implements `score` and `worst`, and sets `top`.

    Args:
        threshold: one number for all exits, or one per exit, (K - 1,) or (K,). The last of K numbers is ignored.

    Attributes:
        top: the best possible score, apart from rounding.
        sign: 1.0, or -1.0 if a quantity must be BELOW the threshold, e.g. the entropy. `score` then returns the
            negative quantity, and bound = -threshold.
        strict: whether a finite threshold more than 1 beyond `top` raises ZtwError, e.g. a percentage.

    Raises:
        ZtwError: for a threshold that is NaN or not a number, and as described for `strict`.

    Example:
        >>> import ztw
        >>> ztw.Entropy([0.25, 0.5]).bounds(exits=3)
        tensor([-0.2500, -0.5000], dtype=torch.float64)
    """

    threshold: float | Sequence[float]

    sign: ClassVar[float] = 1.0
    top: ClassVar[float]
    strict: ClassVar[bool] = False

    def __post_init__(self) -> None:
        given, name = self.threshold, type(self).__name__
        values = as_tensor(given, f"threshold {given!r}")
        if values.dim() > 1 or values.dtype == torch.bool or values.isnan().any():
            raise ZtwError(f"threshold {given!r}: must be a number or one number per exit")
        values = values.double()
        top = self.top if self.strict else math.inf
        if (values.isfinite() & (self.sign * values > top + BEYOND)).any():
            end = f"at {'most' if self.sign > 0 else 'least'} {self.sign * top + 0.0:g}"
            raise ZtwError(f"threshold {given!r}: must be {end} for {name}, its best score")
        object.__setattr__(self, "threshold", values.item() if not values.dim() else tuple(values.tolist()))

    @property
    def bound(self) -> float | tuple[float, ...]:
        """The threshold, or one per exit, on the scale of the scores."""
        if isinstance(self.threshold, tuple):
            return tuple(self.sign * value for value in self.threshold)
        return self.sign * self.threshold  # type: ignore[operator]

    @classmethod
    def thresholds(cls, bounds: Tensor) -> Tensor:
        """Convert bounds to thresholds of the same shape."""
        return cls.sign * bounds + 0.0  # + 0.0 turns -0.0 into 0.0

    @classmethod
    def grid(cls, scores: Tensor, points: int) -> Tensor:
        """Return thresholds (T,), from one that all scores exceed to one that no score exceeds. See `ExitRule.grid`."""
        # rounding can lift a score above `top`, and no sample may pass the last threshold
        return cls.thresholds(_threshold_grid(scores, max(cls.top, float(scores.max())), points))

    @staticmethod
    @abstractmethod
    def worst(num_classes: int) -> float:
        """Return the score of the uniform distribution: the lowest possible score, apart from rounding."""
