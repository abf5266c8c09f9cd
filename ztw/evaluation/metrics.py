"""Metrics of exits and curves, and what a budget buys: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ztw.errors import ZtwError, is_number
from ztw.exits.logits import check_logits
from ztw.exits.sweep import Curve

PERCENT = 10  # a budget from here on that nothing costs is meant as a percentage


def at_budget(curve: Curve, budgets: Sequence[float | str], base_cost: float) -> list[int | None]:
    """Index of the parameter each budget allows, None where none is cheap enough.

    budgets: fractions of `base_cost` (MACs of the backbone alone), each the largest mean cost
    allowed, or "max" for the most accurate parameter whatever it costs. Of the parameters within a
    budget the costliest is taken, of equally costly ones the most cautious: the paper's "largest
    threshold whose mean cost is below". Raises ZtwError for a budget that is not positive, and for a percentage.
    """
    chosen: list[int | None] = []
    for budget in budgets:
        if budget == "max":
            chosen.append(int(curve.accuracy.argmax()))
            continue
        if not is_number(budget) or not budget > 0:
            raise ZtwError(f"budget {budget!r}: must be a fraction of the backbone's cost above 0, or 'max'")
        if budget >= PERCENT and budget * base_cost > curve.cost.max():
            raise ZtwError(
                f"budget {budget!r}: must be a fraction of the backbone's cost; {budget:g} % is {budget / 100:g}"
            )
        # one part in 1e12: the mean over exit fractions rounds
        within = (curve.cost <= budget * base_cost * (1 + 1e-12)).nonzero().flatten()
        if not len(within):
            chosen.append(None)
            continue
        costs = curve.cost[within]
        chosen.append(int(within[costs == costs.max()][-1]))
    return chosen


def accuracy_at_budget(curve: Curve, budgets: Sequence[float | str], base_cost: float) -> Tensor:
    """Look up the accuracy that each budget buys.

    Args:
        curve: of `sweep`.
        budgets: B fractions of `base_cost`, each the largest mean cost allowed; "max" = the highest accuracy.
        base_cost: MACs of the backbone alone.

    Returns:
        float64 (B,), NaN where no parameter is cheap enough.

    Raises:
        ZtwError: for a budget that is not positive, and for a percentage.
    """
    return _picked(curve.accuracy, at_budget(curve, budgets, base_cost))


def parameter_at_budget(curve: Curve, budgets: Sequence[float | str], base_cost: float) -> Tensor:
    """Look up the rule's parameter for each budget, as `accuracy_at_budget` looks up its accuracy."""
    return _picked(curve.parameter, at_budget(curve, budgets, base_cost))


def _picked(values: Tensor, rows: Sequence[int | None]) -> Tensor:
    nan = float("nan")
    return torch.tensor([nan if row is None else float(values[row]) for row in rows], dtype=torch.float64)


def exit_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy (K,) of every exit if all samples left there."""
    logits, labels, _ = check_logits(logits, labels)
    return (logits.argmax(-1) == labels).double().mean(1)


def hindsight_improvability(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of an exit's errors that some earlier exit had right (K,), first 0; lower is better.

    HI_m = #{exit m wrong and some exit j < m right} / #{exit m wrong} (ZTW 2021).
    An exit that makes no error has nothing to improve: 0.
    """
    logits, labels, _ = check_logits(logits, labels)
    right = logits.argmax(-1) == labels
    right_before = torch.zeros_like(right)
    right_before[1:] = right.long().cumsum(0)[:-1] > 0
    wrong = (~right).sum(1)
    wasted = (~right & right_before).sum(1).double()
    return torch.where(wrong > 0, wasted / wrong.clamp(min=1), 0.0)
