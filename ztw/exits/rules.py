"""The exit rules, in one table, RULES, and their texts and JSON. `infer`, `sweep` and `simulate_exits` share them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ztw.errors import ZtwError, is_number, unknown
from ztw.exits.fitted_base import FittedRule, unfitted
from ztw.exits.fitted_rules import Pcee, Temperature
from ztw.exits.rule_base import ExitRule, State, ThresholdRule


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
    "pcee": Pcee,
    "temperature": Temperature,
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


def fit_rule(logits: Tensor, labels: Tensor, rule: str | type[ExitRule]) -> type[ExitRule]:
    """Fit the parameters per exit of a rule on held-out samples; return its class with these parameters.

    Functions such as `sweep` take the class in the place of the rule's name. A class with a threshold is a rule for
    `infer`, `export_onnx` and `save`. Other rules have nothing to fit: their class is returned as it is, and so is a
    class that is fitted already.

    Args:
        logits: (K, N, C), of single exits or an ensemble, not from the test split.
        labels: int (N,).
        rule: name of the exit rule, or its class.

    Raises:
        ZtwError: for an unknown rule, and for invalid logits or labels.

    Example:
        >>> import torch, ztw
        >>> logits, labels = torch.randn(3, 100, 10), torch.arange(100) % 10
        >>> kind = ztw.fit_rule(logits, labels, "temperature")
        >>> curve = ztw.sweep(logits, labels, [1.0, 2.0, 3.0], kind)
        >>> kind(0.9)
        Temperature(threshold=0.9)
    """
    kind = exit_rule(rule)
    return kind.fit(logits, labels) if issubclass(kind, FittedRule) and not kind.fitted else kind


def has_parameter(given: object) -> TypeGuard[ExitRule | str]:
    """Return whether a rule has a parameter, like MaxSoftmax(0.9) and "max_softmax 0.9"."""
    return isinstance(given, ExitRule) or (isinstance(given, str) and len(given.split()) > 1)


def rule_name(kind: type[ExitRule]) -> str:
    """Return the name of a rule's class, fitted or not, in RULES; raise ZtwError if it is not there."""
    for name, known in RULES.items():
        if unfitted(kind) is known:
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
    if issubclass(rule, FittedRule):
        rule.check_exits(len(logits))
    scores: list[Tensor] = []
    state: State = ()
    for exit, exit_logits in enumerate(logits):
        score, state = rule.score_at(exit, exit_logits, state)
        scores.append(score.double())
    return torch.stack(scores)


def describe_rule(rule: ExitRule) -> dict[str, Any]:
    """Convert a rule to JSON, e.g. {"rule": "entropy", "threshold": 0.1}; one threshold per exit becomes a list.

    A fitted rule also has its parameters under "fitted", a list per exit. `rule_from` restores the rule exactly.

    Raises:
        ZtwError: for a rule that is not in RULES.
    """
    described: dict[str, Any] = {"rule": rule_name(type(rule))}
    for field in fields(rule):  # type: ignore[arg-type]
        value = getattr(rule, field.name)
        described[field.name] = list(value) if isinstance(value, tuple) else value
    if isinstance(rule, FittedRule):
        described["fitted"] = [list(row) for row in rule.fitted]
    return described


def rule_from(described: dict[str, Any]) -> ExitRule:
    """Create a rule from the result of `describe_rule`; raise ZtwError for an unknown name or wrong parameters."""
    if not isinstance(described, dict) or not isinstance(described.get("rule"), str):
        raise ZtwError(f"exit rule {described!r}: must be a mapping with the rule's name under 'rule'")
    kind = exit_rule(described["rule"])
    given = {key: value for key, value in described.items() if key != "rule"}
    if issubclass(kind, FittedRule):
        if "fitted" not in given:
            raise ZtwError(f"{described['rule']}: the key 'fitted' is missing")
        kind = kind.with_parameters(given.pop("fitted"))
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
