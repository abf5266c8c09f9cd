"""Exit rules: a score per exit and the bound it must pass; `infer`, `sweep` and `simulate_exits` share them.

A sample leaves at the first exit whose score is STRICTLY greater than the rule's bound there; the
last exit takes the rest. A new rule is one class here and one entry in RULES; a user's own is one class and
`ztw.register`.
"""

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

# How far beyond the best score a threshold may lie, so that nothing passes it whatever rounding does
BEYOND = 1.0
State = tuple[Tensor, ...]  # what a rule remembers of earlier exits, each (N, ...)


class ExitRule(ABC):
    """One rule at one parameter.

    best_answers: who answers for a sample that passes at no exit: False = the last exit, True = its
    most confident exit (largest score, the first of equal ones). It has run to the end either way.
    """

    best_answers: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Score one exit.

        logits: (N, C) of this exit, normalised or not; state: what `score` returned at the previous
        exit, () at the first. Returns scores (N,) and the state for the next exit.
        """

    @property
    @abstractmethod
    def bound(self) -> float | tuple[float, ...]:
        """A sample leaves where its score is strictly greater than this; a tuple has one per exit."""

    @staticmethod
    @abstractmethod
    def grid(scores: Tensor, points: int) -> Tensor:
        """The parameters (T,) to sweep, from the cheapest to the most cautious, for scores (K, N)."""

    def bounds(self, exits: int) -> Tensor:
        """Bounds float64 (K - 1,) of every exit but the last, which takes everybody; exits: K.

        Raises ZtwError where the rule has bounds for another number of exits.
        """
        bound = self.bound
        if not isinstance(bound, tuple):
            return torch.full((exits - 1,), bound, dtype=torch.float64)
        if len(bound) not in (exits - 1, exits):
            name = type(self).__name__
            raise ZtwError(f"{name}: {len(bound)} thresholds, must be one or {exits - 1} ({exits} exits)")
        return torch.tensor(bound[: exits - 1], dtype=torch.float64)


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
class ThresholdRule(ExitRule):
    """A rule with a threshold: one for all exits, or a sequence of one per exit, (K - 1,) or (K,).

    The last exit takes everybody, so the last of K is ignored. Raises ZtwError for NaN, and where the rule is
    `strict` for a finite threshold far beyond the best score, such as a percentage. One of your own says
    `score`, its best value `top` and its `worst`, and `sign = -1.0` where the threshold is an upper one: the score
    is then minus what is compared with it.
    """

    threshold: float | Sequence[float]

    sign: ClassVar[float] = 1.0  # bound = sign * threshold
    top: ClassVar[float]  # the best score there is, rounding aside
    strict: ClassVar[bool] = False  # whether a threshold far beyond `top` is a slip and refused

    def __post_init__(self) -> None:
        given, name = self.threshold, type(self).__name__
        values = as_tensor(given, f"threshold {given!r}")
        if values.dim() > 1 or values.dtype == torch.bool or values.isnan().any():
            raise ZtwError(f"threshold {given!r}: must be a number or one number per exit")
        values = values.double()
        top = self.top if self.strict else math.inf
        if (values.isfinite() & (self.sign * values > top + BEYOND)).any():
            end = f"at {'most' if self.sign > 0 else 'least'} {self.sign * top + 0.0:g}"
            raise ZtwError(f"threshold {given!r}: of {name} must be {end}, its best score")
        object.__setattr__(self, "threshold", values.item() if not values.dim() else tuple(values.tolist()))

    @property
    def bound(self) -> float | tuple[float, ...]:
        """The threshold(s) on the scale of the scores."""
        if isinstance(self.threshold, tuple):
            return tuple(self.sign * value for value in self.threshold)
        return self.sign * self.threshold  # type: ignore[operator]

    @classmethod
    def thresholds(cls, bounds: Tensor) -> Tensor:
        """The thresholds that mean these bounds, of the same shape."""
        return cls.sign * bounds + 0.0  # never -0.0

    @classmethod
    def grid(cls, scores: Tensor, points: int) -> Tensor:
        """Thresholds from just below the smallest score (everything leaves) to the best (nothing does)."""
        # rounding can lift a score above the best one, and the last threshold must let nothing pass
        return cls.thresholds(_threshold_grid(scores, max(cls.top, float(scores.max())), points))

    @staticmethod
    @abstractmethod
    def worst(num_classes: int) -> float:
        """The score of the uniform distribution over `num_classes` classes: the lowest there is, rounding aside."""


class MaxSoftmax(ThresholdRule):
    """Leave when the largest softmax probability exceeds `threshold` (SDN 2019, ZTW 2021)."""

    top = 1.0
    strict = True

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Largest probability (N,)."""
        return logits.softmax(-1).amax(-1), ()

    @staticmethod
    def worst(num_classes: int) -> float:
        """1 / C."""
        return 1 / num_classes


class MaxSoftmaxOrBest(MaxSoftmax):
    """As MaxSoftmax, but a sample that passes nowhere gets its most confident exit's answer (SDN 2019)."""

    best_answers = True


class Entropy(ThresholdRule):
    """Leave when the softmax entropy (natural logarithm) is below `threshold` (BranchyNet 2016)."""

    sign = -1.0
    top = 0.0
    strict = True

    @staticmethod
    def score(logits: Tensor, state: State) -> tuple[Tensor, State]:
        """Negative entropy (N,), from log-probabilities: one logarithm a sample instead of one a class."""
        log_p = logits.log_softmax(-1)
        log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)  # 0 log 0 is 0
        return (log_p.exp() * log_p).sum(-1), ()

    @staticmethod
    def worst(num_classes: int) -> float:
        """-log C."""
        return -math.log(num_classes)


@dataclass(frozen=True)
class Patience(ExitRule):
    """Leave at the first exit that ends `t` consecutive agreements of the argmax (PABEE 2020).

    t = 0 lets everything leave at exit 1. ZTW's released comparison counts equal answers, the first one
    included: its p is t + 1. PABEE's own patience is t for t >= 1; its 0 means the whole network.
    """

    t: int

    def __post_init__(self) -> None:
        if not is_number(self.t) or self.t < 0 or not float(self.t).is_integer():
            raise ZtwError(f"patience {self.t!r}: must be a whole number of at least 0")
        object.__setattr__(self, "t", int(self.t))

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
        """0 ... K-1; the first lets everything leave at exit 1, the last runs the whole network."""
        return torch.arange(max(1, len(scores)), dtype=torch.float64)


RULES: dict[str, type[ExitRule]] = {
    "max_softmax": MaxSoftmax,
    "max_softmax_or_best": MaxSoftmaxOrBest,
    "entropy": Entropy,
    "patience": Patience,
}


def exit_rule(given: str | ExitRule | type[ExitRule]) -> type[ExitRule]:
    """Take a name in RULES, or a class of a rule, as the class.

    Raises ZtwError for an unknown name, and for a rule that has its parameter already.
    """
    if isinstance(given, type) and issubclass(given, ExitRule):
        return given
    if has_parameter(given):
        raise ZtwError(f"rule {given}: has a parameter already; give its name, e.g. {next(iter(RULES))!r}")
    if not isinstance(given, str) or given not in RULES:
        raise unknown("exit rule", given, RULES)
    return RULES[given]


def has_parameter(given: object) -> TypeGuard[ExitRule | str]:
    """Whether what is given for a rule has a parameter, as MaxSoftmax(0.9) and "max_softmax 0.9" have."""
    return isinstance(given, ExitRule) or (isinstance(given, str) and len(given.split()) > 1)


def rule_name(kind: type[ExitRule]) -> str:
    """Look up the name of a rule's class in RULES; raises ZtwError for one that is not there."""
    for name, known in RULES.items():
        if kind is known:
            return name
    raise unknown("exit rule", kind.__name__, (known.__name__ for known in RULES.values()))


def as_rule(given: ExitRule | str) -> ExitRule:
    """Take a rule, or a text such as "max_softmax 0.9" or "patience 3", as a rule.

    Args:
        given: a rule; or its name in RULES and its parameter, or one parameter per exit, with spaces between.

    Raises:
        ZtwError: for anything else, such as a threshold without a rule.
    """
    if isinstance(given, ExitRule):
        return given
    if not isinstance(given, str) or not given.split():
        raise ZtwError(
            f"rule {_shown(given)}: must be an exit rule, e.g. ztw.MaxSoftmax(0.9) or 'max_softmax 0.9'"
        )
    name, *texts = given.split()
    kind = exit_rule(name)
    try:
        values = [float(text) for text in texts]
    except ValueError as error:
        raise ZtwError(f"rule {given!r}: what follows the name must be numbers") from error
    if not values:
        raise ZtwError(f"rule {given!r}: needs its parameter, e.g. 'max_softmax 0.9'")
    return kind(values[0] if len(values) == 1 else values)  # type: ignore[call-arg]


def _shown(given: object) -> str:
    """A value that is no rule, in an error."""
    if isinstance(given, type):
        return f"{given.__name__} (a class)"
    return (
        repr(given) if given is None or is_number(given) or isinstance(given, str) else type(given).__name__
    )


def exit_scores(logits: Tensor, rule: type[ExitRule]) -> Tensor:
    """Scores float64 (K, N) of a rule at every exit, for logits (K, N, C)."""
    scores: list[Tensor] = []
    state: State = ()
    for exit_logits in logits:
        score, state = rule.score(exit_logits, state)
        scores.append(score.double())
    return torch.stack(scores)


def describe_rule(rule: ExitRule) -> dict[str, Any]:
    """A rule as JSON has it: its name in RULES and its parameters, {"rule": "entropy", "threshold": 0.1}.

    Thresholds are float64, which JSON keeps exactly; one per exit is a list. `rule_from` makes the rule again.
    Raises ZtwError for a rule that is not in RULES.
    """
    described: dict[str, Any] = {"rule": rule_name(type(rule))}
    for field in fields(rule):  # type: ignore[arg-type]
        value = getattr(rule, field.name)
        described[field.name] = list(value) if isinstance(value, tuple) else value
    return described


def rule_from(facts: dict[str, Any]) -> ExitRule:
    """The rule that `describe_rule` has described; raises ZtwError for an unknown name or other parameters."""
    if not isinstance(facts, dict) or not isinstance(facts.get("rule"), str):
        raise ZtwError(f"exit rule {facts!r}: must be a mapping with the name as `rule`")
    kind = exit_rule(facts["rule"])
    given = {key: value for key, value in facts.items() if key != "rule"}
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if given.keys() != set(known):
        raise ZtwError(f"{facts['rule']}: has parameters {sorted(given)}, must be {', '.join(known)}")
    for name, value in given.items():
        if not all(is_number(item) for item in (value if isinstance(value, list) else [value])):
            raise ZtwError(f"{facts['rule']}: {name} is {value!r}, must be a number or one number per exit")
    try:
        return kind(**given)
    except TypeError as error:
        raise ZtwError(f"{facts['rule']}: {given} cannot be its parameters ({error})") from error
