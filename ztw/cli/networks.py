"""Load the network that a user names, with its exit rule."""

from __future__ import annotations

from pathlib import Path

from ztw.errors import ZtwError
from ztw.evaluation.saving import load
from ztw.exits.rules import ExitRule, as_rule
from ztw.models.network import EarlyExitNetwork


def network_and_rule(folder: Path, rule: str | None, budget: str | None) -> tuple[EarlyExitNetwork, ExitRule]:
    """Load a network, and its rule unless another one is given.

    Args:
        folder: of a saved network.
        rule: e.g. "max_softmax 0.9"; None = the saved rule.
        budget: of the saved rule, a number or "max".

    Raises:
        ZtwError: as `load`; if both a rule and a budget are given, or there is no rule; for a network without exits.
    """
    if rule is not None and budget is not None:
        raise ZtwError("--rule and --budget: give only one of them")
    network, saved = load(folder, budget=_number(budget))
    if not network.heads:
        raise ZtwError(f"{folder}: the network has no exits but its last one")
    chosen = saved if rule is None else as_rule(rule)
    if chosen is None:
        raise ZtwError(f"{folder}: no rule is saved; give one, e.g. --rule 'max_softmax 0.9'")
    chosen.bounds(network.exits)  # raises ZtwError for a rule that does not fit
    return network, chosen


def _number(budget: str | None) -> float | str | None:
    if budget is None or budget == "max":
        return budget
    try:
        return float(budget)
    except ValueError as error:
        raise ZtwError(f"--budget {budget!r}: must be a number, or max") from error
