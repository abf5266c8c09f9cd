"""Base class of exit rules with parameters per exit that are fitted on held-out samples."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ztw.errors import ZtwError, is_number
from ztw.exits.logits import check_logits
from ztw.exits.rule_base import State, ThresholdRule

Parameters = tuple[tuple[float, ...], ...]  # one tuple of numbers per exit

# (class, parameters) -> fitted class, so that two rules with equal parameters have the same class
_CLASSES: WeakValueDictionary[tuple[type, Parameters], type[Any]] = WeakValueDictionary()


class FittedRule(ThresholdRule):
    """Base class of threshold rules with parameters per exit, fitted on held-out samples.

    A subclass implements `fit_exit` and `fitted_score`, and sets `top`. Fit it before thresholds are chosen: `fit_rule`
    returns a class with the parameters, which functions take in the place of the rule's name. An instance of this class
    holds the threshold. A study and `choose_threshold` fit a rule on the same held-out samples that choose its
    thresholds.

    Attributes:
        fitted: one tuple of numbers per exit; () if the class is not fitted.

    Raises:
        ZtwError: for an instance of a class that is not fitted.

    Example:
        >>> import torch, ztw
        >>> class Trusted(ztw.FittedRule):  # the largest probability times the exit's accuracy
        ...     top = 1.0
        ...     @staticmethod
        ...     def fit_exit(logits, labels):
        ...         return [float((logits.argmax(-1) == labels).double().mean())]
        ...     @staticmethod
        ...     def fitted_score(logits, state, fitted):
        ...         return logits.softmax(-1).amax(-1) * fitted[0], ()
        >>> logits, labels = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]] * 3), torch.tensor([0, 1])  # 3 exits, 2 samples
        >>> kind = ztw.fit_rule(logits, labels, Trusted)
        >>> kind.fitted
        ((0.5,), (0.5,), (0.5,))
        >>> kind(0.4)
        Trusted(threshold=0.4)
    """

    fitted: ClassVar[Parameters] = ()

    def __post_init__(self) -> None:
        _require_fitted(type(self))
        super().__post_init__()

    @staticmethod
    @abstractmethod
    def fit_exit(logits: Tensor, labels: Tensor) -> Sequence[float]:
        """Fit the parameters of one exit.

        Args:
            logits: (N, C) of the exit on held-out samples, on the CPU, normalised or not.
            labels: int64 (N,).

        Returns:
            Finite numbers, at least one.
        """

    @staticmethod
    @abstractmethod
    def fitted_score(logits: Tensor, state: State, fitted: Tensor) -> tuple[Tensor, State]:
        """Compute the scores of one exit; see `ExitRule.score`.

        Args:
            logits: see `ExitRule.score`.
            state: see `ExitRule.score`.
            fitted: (P,), the exit's parameters from `fit_exit`, at least float32.
        """

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Raise ZtwError: the scores depend on the exit, see `score_at`."""
        raise ZtwError("the scores of a fitted rule depend on the exit; use score_at(exit, logits, state)")

    @staticmethod
    def worst(num_classes: int) -> float:
        """Return -inf. Only `risk_controlled` thresholds need the worst score, and they refuse fitted rules."""
        return -math.inf

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor) -> type[FittedRule]:
        """Return the class with parameters fitted to logits (K, N, C) and labels (N,); see `fit_rule`."""
        logits, labels, _ = check_logits(logits, labels)
        logits, labels = logits.detach().cpu(), labels.cpu()
        return cls.with_parameters([tuple(map(float, cls.fit_exit(exit, labels))) for exit in logits])

    @classmethod
    def with_parameters(cls, fitted: Sequence[Sequence[float]]) -> type[FittedRule]:
        """Return the class with these parameters, one sequence of numbers per exit.

        Raises:
            ZtwError: for an exit without parameters, and for values that are not finite numbers.
        """
        origin = unfitted(cls)
        lists = isinstance(fitted, list | tuple) and all(isinstance(row, list | tuple) for row in fitted)
        if not lists or not fitted or not all(row and all(map(is_number, row)) for row in fitted):
            raise ZtwError(f"{origin.__name__}: fitted must be a list of finite numbers per exit")
        parameters = tuple(tuple(map(float, row)) for row in fitted)
        if not all(math.isfinite(value) for row in parameters for value in row):
            raise ZtwError(f"{origin.__name__}: a fitted parameter is not finite")
        found = _CLASSES.get((origin, parameters))
        if found is None:
            names = {"__module__": origin.__module__, "__doc__": origin.__doc__, "fitted": parameters}
            found = type(origin.__name__, (origin,), {"__qualname__": origin.__qualname__, **names})
            _CLASSES[origin, parameters] = found
        return found

    @classmethod
    def score_at(cls, exit: int, logits: Tensor, state: State) -> tuple[Tensor, State]:
        """See `ExitRule.score_at`."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return cls.fitted_score(
            logits, state, torch.tensor(cls.fitted[exit], dtype=dtype, device=logits.device)
        )

    @classmethod
    def check_exits(cls, exits: int) -> None:
        """Raise ZtwError unless the class is fitted for this number of exits."""
        _require_fitted(cls)
        if len(cls.fitted) != exits:
            raise ZtwError(f"{cls.__name__}: fitted for {len(cls.fitted)} exits, must be for {exits}")

    def bounds(self, exits: int) -> Tensor:
        """See `ExitRule.bounds`."""
        self.check_exits(exits)
        return super().bounds(exits)

    def __reduce__(self) -> tuple[Any, ...]:
        kind = type(self)
        return _restored, (unfitted(kind), kind.fitted, self.threshold)


def unfitted(kind: type) -> type:
    """Return the class that a fitted class was made from; any other class unchanged."""
    return kind.__bases__[0] if issubclass(kind, FittedRule) and kind.fitted else kind


def _restored(kind: type[FittedRule], fitted: Parameters, threshold: Any) -> FittedRule:
    """Return the rule that was pickled; pickle cannot find the fitted class by its name."""
    return kind.with_parameters(fitted)(threshold)


def _require_fitted(kind: type[FittedRule]) -> None:
    if not kind.fitted:
        name = kind.__name__
        raise ZtwError(
            f"{name}: is not fitted; kind = ztw.fit_rule(logits, labels, rule), then kind(threshold)"
        )
