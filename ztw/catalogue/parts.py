"""The parts that a study names: the built-in ones, and a user's own beside them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# kind -> its built-in names, in the order of its table
BUILT_IN: dict[str, tuple[str, ...]] = {
    "rule": ("max_softmax", "max_softmax_or_best", "entropy", "patience"),
    "ensemble": ("geometric", "arithmetic", "uniform"),
    "head": ("conv", "pool"),
    "thresholds": ("shared", "per_exit", "allowed_loss", "risk_controlled"),
}


NO_THRESHOLD = ("patience",)  # rules
EXIT_WEIGHTS = ("uniform", "depth", "growing")  # of joint training


@dataclass(frozen=True)
class Part:
    """A user's own part, as `ztw.register` got it.

    facts: what must be known of it before anything runs; remove: takes it out of its table; plugin: the entry
    of a study's `plugins` that brought it, None for one that was registered in Python.
    """

    what: Any
    facts: Mapping[str, Any]
    remove: Callable[[], None]
    plugin: str | None = None


# (kind, name) -> the part
PARTS: dict[tuple[str, str], Part] = {}
# Plugins this process has loaded, as the study names them -> SHA-256 of the file, with its helpers
PLUGINS: dict[str, str] = {}


def own(kind: str) -> dict[str, Mapping[str, Any]]:
    """A user's own parts of a kind: name -> facts."""
    return {name: part.facts for (found, name), part in PARTS.items() if found == kind}


def known(kind: str) -> list[str]:
    """The names of a kind of BUILT_IN, a user's own ones last."""
    return [*BUILT_IN[kind], *own(kind)]


def list_rules() -> list[str]:
    """List the names of the exit rules, a user's own ones last."""
    return known("rule")


def list_ensembles() -> list[str]:
    """List the names of the ensembles, a user's own ones last."""
    return known("ensemble")


def list_heads() -> list[str]:
    """List the names of the heads of internal classifiers, a user's own ones last."""
    return known("head")


def list_thresholds() -> list[str]:
    """List the names of the ways of choosing thresholds, a user's own ones last."""
    return known("thresholds")


def has_threshold(rule: str) -> bool:
    """Whether a rule has a threshold that can be chosen."""
    return own("rule")[rule]["threshold"] if rule in own("rule") else rule not in NO_THRESHOLD
