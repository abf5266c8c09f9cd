"""Exit rules: a score per exit, and the bound it must exceed. `infer`, `sweep` and `simulate_exits` share them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeGuard

import torch
from torch import Tensor

from ztw.errors import ZtwError, is_number, unknown
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


class MaxSoftmax(ThresholdRule):
    """Leave when the largest softmax probability exceeds the threshold (SDN 2019, ZTW 2021).

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[3.0, 0.0], [0.1, 0.0]], [[3.0, 0.0], [3.0, 0.0]]])  # 2 exits, 2 samples
        >>> ztw.simulate_exits(logits, ztw.MaxSoftmax(0.9))[0]
        tensor([0, 1])
    """

    top = 1.0
    strict = True

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the largest probability (N,)."""
        return logits.softmax(-1).amax(-1), ()

    @staticmethod
    def worst(num_classes: int) -> float:
        """Return 1 / C."""
        return 1 / num_classes


class MaxSoftmaxOrBest(MaxSoftmax):
    """Leave as with `MaxSoftmax`; if no exit passes the threshold, the most confident exit predicts (SDN 2019).

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.1, 0.0]]])  # 2 exits, 1 sample
        >>> ztw.simulate_exits(logits, ztw.MaxSoftmaxOrBest(0.99))  # runs to exit 1, exit 0 predicts
        (tensor([1]), tensor([0]))
    """

    best_answers = True


class Entropy(ThresholdRule):
    """Leave when the entropy of the softmax, in nats, is below the threshold (BranchyNet 2016).

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[5.0, 0.0], [0.1, 0.0]], [[5.0, 0.0], [5.0, 0.0]]])  # 2 exits, 2 samples
        >>> ztw.simulate_exits(logits, ztw.Entropy(0.1))[0]
        tensor([0, 1])
    """

    sign = -1.0
    top = 0.0
    strict = True

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the negative entropy (N,)."""
        log_p = logits.log_softmax(-1)  # one logarithm per sample, not one per class
        log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)  # 0 log 0 is 0
        return (log_p.exp() * log_p).sum(-1), ()

    @staticmethod
    def worst(num_classes: int) -> float:
        """Return -log C."""
        return -math.log(num_classes)


@dataclass(frozen=True)
class Patience(ExitRule):
    """Leave when `t` exits in a row predict the same class as the exit before them (PABEE 2020).

    t is the patience of PABEE's code for t >= 1. A patience of 0 there means no early exits; here, every sample leaves
    at the first exit. The parameter p of ZTW's released comparison is t + 1.

    Args:
        t: number of consecutive agreements, at least 0.

    Raises:
        ZtwError: unless t is a whole number of at least 0.

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]])  # 3 exits, 1 sample
        >>> ztw.simulate_exits(logits, ztw.Patience(1))[0]
        tensor([1])
    """

    t: int

    def __post_init__(self) -> None:
        if not is_number(self.t) or self.t < 0 or not float(self.t).is_integer():
            raise ZtwError(f"patience {self.t!r}: must be a whole number of at least 0")
        object.__setattr__(self, "t", int(self.t))

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the number (N,) of consecutive agreements up to this exit. It is 0 at the first exit."""
        predicted = logits.argmax(-1)
        if not state:
            return torch.zeros_like(predicted, dtype=torch.float64), (predicted, torch.zeros_like(predicted))
        previous, agreements = state
        agreements = torch.where(predicted == previous, agreements + 1, 0)
        return agreements.double(), (predicted, agreements)

    @property
    def bound(self) -> float:
        """t - 0.5, so that t agreements pass."""
        return self.t - 0.5

    @staticmethod
    def grid(scores: Tensor, points: int) -> Tensor:
        """Return 0 ... K - 1. At 0, all samples leave at the first exit; at K - 1, none leaves early."""
        return torch.arange(max(1, len(scores)), dtype=torch.float64)


@dataclass(frozen=True)
class FixedExit(ExitRule):
    """All samples leave at one exit: the network is cut after it, and no other exit is computed.

    It has no meaning with an ensemble, which combines several exits.

    Args:
        exit: number of the exit, from 1.

    Raises:
        ZtwError: unless the exit is a whole number of at least 1.

    Example:
        >>> import torch, ztw
        >>> logits = torch.zeros(3, 2, 5)  # 3 exits, 2 samples, 5 classes
        >>> ztw.simulate_exits(logits, ztw.FixedExit(2))[0]  # exit indices are from 0
        tensor([1, 1])
    """

    exit: int
    single = True

    def __post_init__(self) -> None:
        if not is_number(self.exit) or self.exit < 1 or not float(self.exit).is_integer():
            raise ZtwError(f"fixed_exit {self.exit!r}: must be the number of an exit, from 1")
        object.__setattr__(self, "exit", int(self.exit))

    @property
    def only_exit(self) -> int:
        """The number of the exit, from 1."""
        return self.exit

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the number (N,) of this exit, from 1."""
        number = state[0] + 1 if state else torch.ones_like(logits[:, 0], dtype=torch.float64)
        return number, (number,)

    @property
    def bound(self) -> float:
        """exit - 0.5, so that its number is the first to pass."""
        return self.exit - 0.5

    def bounds(self, exits: int) -> Tensor:
        """Return the bounds (K - 1,), see `ExitRule.bounds`; raise ZtwError for an exit that does not exist."""
        if self.exit > exits:
            raise ZtwError(f"fixed_exit {self.exit}: the network has exits 1 to {exits}")
        return super().bounds(exits)

    @staticmethod
    def grid(scores: Tensor, points: int) -> Tensor:
        """Return 1 ... K."""
        return torch.arange(1, len(scores) + 1, dtype=torch.float64)


RULES: dict[str, type[ExitRule]] = {
    "max_softmax": MaxSoftmax,
    "max_softmax_or_best": MaxSoftmaxOrBest,
    "entropy": Entropy,
    "patience": Patience,
    "fixed_exit": FixedExit,
}


def exit_rule(given: str | ExitRule | type[ExitRule]) -> type[ExitRule]:
    """Return the class of a rule, given the class or its name in RULES.

    Raises:
        ZtwError: for an unknown name, or a rule that has a parameter already.
    """
    if isinstance(given, type) and issubclass(given, ExitRule):
        return given
    if has_parameter(given):
        raise ZtwError(
            f"rule {given}: has a parameter already; give only the name, e.g. {next(iter(RULES))!r}"
        )
    if not isinstance(given, str) or given not in RULES:
        raise unknown("exit rule", given, RULES)
    return RULES[given]


def has_parameter(given: object) -> TypeGuard[ExitRule | str]:
    """Return whether a rule has a parameter, like MaxSoftmax(0.9) and "max_softmax 0.9"."""
    return isinstance(given, ExitRule) or (isinstance(given, str) and len(given.split()) > 1)


def rule_name(kind: type[ExitRule]) -> str:
    """Return the name of a rule's class in RULES; raise ZtwError if it is not there."""
    for name, known in RULES.items():
        if kind is known:
            return name
    raise unknown("exit rule", kind.__name__, (known.__name__ for known in RULES.values()))


def as_rule(given: ExitRule | str) -> ExitRule:
    """Convert a text such as "max_softmax 0.9" or "patience 3" to a rule.

    Args:
        given: a rule, or a text: the rule's name in RULES, then one number, or one number per exit.

    Raises:
        ZtwError: for any other value, e.g. a threshold without a rule.
    """
    if isinstance(given, ExitRule):
        return given
    if not isinstance(given, str) or not given.split():
        raise ZtwError(
            f"rule {_shown(given)}: must be an exit rule with its parameter, e.g. ztw.MaxSoftmax(0.9) or"
            " 'max_softmax 0.9'"
        )
    name, *texts = given.split()
    kind = exit_rule(name)
    try:
        values = [float(text) for text in texts]
    except ValueError as error:
        raise ZtwError(f"rule {given!r}: only numbers may follow the name") from error
    if not values:
        raise ZtwError(f"rule {given!r}: needs a parameter, e.g. 'max_softmax 0.9'")
    return kind(values[0] if len(values) == 1 else values)  # type: ignore[call-arg]


def _shown(given: object) -> str:
    if isinstance(given, type):
        return f"{given.__name__} (a class)"
    return (
        repr(given) if given is None or is_number(given) or isinstance(given, str) else type(given).__name__
    )


def exit_scores(logits: Tensor, rule: type[ExitRule]) -> Tensor:
    """Compute the scores float64 (K, N) of a rule at every exit for logits (K, N, C)."""
    scores: list[Tensor] = []
    state: State = ()
    for exit_logits in logits:
        score, state = rule.score(exit_logits, state)
        scores.append(score.double())
    return torch.stack(scores)


def describe_rule(rule: ExitRule) -> dict[str, Any]:
    """Convert a rule to JSON, e.g. {"rule": "entropy", "threshold": 0.1}; one threshold per exit becomes a list.

    `rule_from` restores the rule exactly.

    Raises:
        ZtwError: for a rule that is not in RULES.
    """
    described: dict[str, Any] = {"rule": rule_name(type(rule))}
    for field in fields(rule):  # type: ignore[arg-type]
        value = getattr(rule, field.name)
        described[field.name] = list(value) if isinstance(value, tuple) else value
    return described


def rule_from(described: dict[str, Any]) -> ExitRule:
    """Create a rule from the result of `describe_rule`; raise ZtwError for an unknown name or wrong parameters."""
    if not isinstance(described, dict) or not isinstance(described.get("rule"), str):
        raise ZtwError(f"exit rule {described!r}: must be a mapping with the rule's name under 'rule'")
    kind = exit_rule(described["rule"])
    given = {key: value for key, value in described.items() if key != "rule"}
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if given.keys() != set(known):
        raise ZtwError(f"{described['rule']}: has parameters {sorted(given)}, must be {', '.join(known)}")
    for name, value in given.items():
        if not all(is_number(item) for item in (value if isinstance(value, list) else [value])):
            raise ZtwError(
                f"{described['rule']}: {name} is {value!r}, must be a number or one number per exit"
            )
    try:
        return kind(**given)
    except TypeError as error:
        raise ZtwError(f"{described['rule']}: invalid parameters {given} ({error})") from error
