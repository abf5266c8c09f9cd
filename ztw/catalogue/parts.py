"""The parts that a study can name: built-in and registered ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# kind -> built-in names, in the order of the kind's table
BUILT_IN: dict[str, tuple[str, ...]] = {
    "rule": (
        "max_softmax",
        "max_softmax_or_best",
        "entropy",
        "patience",
        "fixed_exit",
        "pcee",
        "temperature",
    ),
    "ensemble": ("geometric", "arithmetic", "uniform"),
    "head": ("conv", "pool", "mlp", "identity"),
    "thresholds": ("shared", "per_exit", "allowed_loss", "risk_controlled"),
}
NO_THRESHOLD = ("patience", "fixed_exit")  # rules without a threshold
FITTED = ("pcee", "temperature")  # rules that are fitted on held-out samples
EXIT_WEIGHTS = ("uniform", "depth", "growing")  # for joint training


@dataclass(frozen=True)
class Part:
    """A part that a user registered with `ztw.register`.

    Args:
        what: the registered object.
        metadata: options of `ztw.register`, for checks of a study before it runs.
        remove: removes the part from its table.
        plugin: the entry of a study's `plugins` that registered the part; None = registered in Python.
    """

    what: Any
    metadata: Mapping[str, Any]
    remove: Callable[[], None]
    plugin: str | None = None


# (kind, name) -> registered part
PARTS: dict[tuple[str, str], Part] = {}
# Loaded plugin, as the study names it -> SHA-256 of its file and helpers
PLUGINS: dict[str, str] = {}


def own(kind: str) -> dict[str, Mapping[str, Any]]:
    """Return the registered parts of a kind: name -> metadata."""
    return {name: part.metadata for (found, name), part in PARTS.items() if found == kind}


def known(kind: str) -> list[str]:
    """List the names of a kind, registered ones last."""
    return [*BUILT_IN[kind], *own(kind)]


def list_rules() -> list[str]:
    """List the names of the exit rules, registered ones last.

    Example:
        >>> import ztw
        >>> ztw.list_rules()
        ['max_softmax', 'max_softmax_or_best', 'entropy', 'patience', 'fixed_exit', 'pcee', 'temperature']
    """
    return known("rule")


def list_ensembles() -> list[str]:
    """List the names of the ensembles, registered ones last.

    Example:
        >>> import ztw
        >>> ztw.list_ensembles()
        ['geometric', 'arithmetic', 'uniform']
    """
    return known("ensemble")


def list_heads() -> list[str]:
    """List the names of the heads of internal classifiers (ICs), registered ones last.

    - "conv": 3x3 convolution, pooling, one linear layer (ZTW 2021).
    - "pool": pooling, one linear layer (SDN 2019).
    - "mlp": pooling, a hidden layer, one linear layer.
    - "identity": nothing, for features that are logits already, see `model_cascade`.

    Example:
        >>> import ztw
        >>> ztw.list_heads()
        ['conv', 'pool', 'mlp', 'identity']
    """
    return known("head")


def list_thresholds() -> list[str]:
    """List the names of the ways to choose thresholds, registered ones last.

    Example:
        >>> import ztw
        >>> ztw.list_thresholds()
        ['shared', 'per_exit', 'allowed_loss', 'risk_controlled']
    """
    return known("thresholds")


def has_threshold(rule: str) -> bool:
    """Return whether a rule has a threshold."""
    return own("rule")[rule]["threshold"] if rule in own("rule") else rule not in NO_THRESHOLD


def is_fitted(rule: str) -> bool:
    """Return whether a rule is fitted on held-out samples."""
    return own("rule")[rule]["fitted"] if rule in own("rule") else rule in FITTED
