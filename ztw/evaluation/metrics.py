"""Compute metrics of exits and curves, such as accuracy at a budget. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ztw.errors import ZtwError, is_number
from ztw.exits.logits import check_logits
from ztw.exits.sweep import Curve

PERCENT = 10  # a budget >= 10 that exceeds all costs must be a percentage, given by mistake


def at_budget(curve: Curve, budgets: Sequence[float | str], base_cost: float) -> list[int | None]:
    """Return the most expensive row of a curve within each budget; on a tie the last one.

    This is the paper's "largest threshold whose mean cost is below".

    Args:
        curve: from `sweep`.
        budgets: limits of the mean cost, as shares of `base_cost`; "max" = the most accurate row.
        base_cost: MACs of the backbone alone.

    Returns:
        The index of each row; None where no row is cheap enough.

    Raises:
        ZtwError: as in `accuracy_at_budget`.
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
        # Tolerance 1e-12, because the mean cost has a rounding error
        within = (curve.cost <= budget * base_cost * (1 + 1e-12)).nonzero().flatten()
        if not len(within):
            chosen.append(None)
            continue
        costs = curve.cost[within]
        chosen.append(int(within[costs == costs.max()][-1]))
    return chosen


def accuracy_at_budget(curve: Curve, budgets: Sequence[float | str], base_cost: float) -> Tensor:
    """Return the accuracy at each budget: that of the most expensive parameter within the budget.

    Args:
        curve: from `sweep`.
        budgets: B limits of the mean cost, as shares of `base_cost`; "max" = the parameter with the highest accuracy.
        base_cost: cost of the backbone alone, in multiply-accumulate operations (MACs).

    Returns:
        float64 (B,), in [0, 1]; NaN where no parameter is cheap enough.

    Raises:
        ZtwError: for a budget that is not positive, or so large that it must be a percentage.

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [4.0, 0.0]]])  # 2 exits, 2 samples
        >>> curve = ztw.sweep(logits, torch.tensor([0, 1]), [1.0, 4.0], "max_softmax")
        >>> ztw.accuracy_at_budget(curve, [0.2, 0.5, "max"], base_cost=4.0)
        tensor([nan, 1., 1.], dtype=torch.float64)
    """
    return _picked(curve.accuracy, at_budget(curve, budgets, base_cost))


def parameter_at_budget(curve: Curve, budgets: Sequence[float | str], base_cost: float) -> Tensor:
    """Return the rule's parameter at each budget: the most expensive within it. See `accuracy_at_budget`.

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [4.0, 0.0]]])  # 2 exits, 2 samples
        >>> curve = ztw.sweep(logits, torch.tensor([0, 1]), [1.0, 4.0], "max_softmax")
        >>> ztw.parameter_at_budget(curve, [0.2, 0.5], base_cost=4.0)
        tensor([   nan, 0.7311], dtype=torch.float64)
    """
    return _picked(curve.parameter, at_budget(curve, budgets, base_cost))


def _picked(values: Tensor, rows: Sequence[int | None]) -> Tensor:
    nan = float("nan")
    return torch.tensor([nan if row is None else float(values[row]) for row in rows], dtype=torch.float64)


def exit_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the accuracy of each exit on all samples.

    Args:
        logits: (K, N, C).
        labels: int (N,).

    Returns:
        float64 (K,), in [0, 1].

    Raises:
        ZtwError: for invalid logits or labels.

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [4.0, 0.0]]])  # 2 exits, 2 samples
        >>> ztw.exit_accuracy(logits, torch.tensor([0, 1]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    logits, labels, _ = check_logits(logits, labels)
    return (logits.argmax(-1) == labels).double().mean(1)


def hindsight_improvability(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of each exit's errors that an earlier exit classifies correctly; lower is better.

    HI_m = #{exit m wrong and some exit j < m correct} / #{exit m wrong} (ZTW 2021); 0 for an exit without errors.

    Args:
        logits: (K, N, C).
        labels: int (N,).

    Returns:
        float64 (K,), in [0, 1]; the first is 0.

    Raises:
        ZtwError: for invalid logits or labels.

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [4.0, 0.0]]])  # 2 exits, 2 samples
        >>> ztw.hindsight_improvability(logits, torch.tensor([0, 1]))
        tensor([0., 1.], dtype=torch.float64)
    """
    logits, labels, _ = check_logits(logits, labels)
    right = logits.argmax(-1) == labels
    right_before = torch.zeros_like(right)
    right_before[1:] = right.long().cumsum(0)[:-1] > 0
    wrong = (~right).sum(1)
    wasted = (~right & right_before).sum(1).double()
    return torch.where(wrong > 0, wasted / wrong.clamp(min=1), 0.0)
