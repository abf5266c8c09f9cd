"""Curves, budgets and metrics: pure functions of logits, labels and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.rules import exit_rule, exit_scores


@dataclass(frozen=True)
class Curve:
    """Accuracy against cost as a rule's parameter varies.

    parameter (T,), from the cheapest to the most cautious; accuracy (T,) in [0, 1]; cost (T,) mean
    MACs a sample; exit_fraction (T, K), rows sum to 1. All float64.
    """

    parameter: Tensor
    accuracy: Tensor
    cost: Tensor
    exit_fraction: Tensor


def check_logits(logits: Tensor, labels: Tensor | None = None, cost: Tensor | None = None) -> None:
    """Raise ZtwError unless logits (K, N, C), labels (N,) and cost (K,) are what they should be."""
    if logits.dim() != 3 or 0 in logits.shape:
        raise ZtwError(f"logits: shape {tuple(logits.shape)}, must be (exits, samples, classes), none 0")
    if logits.isnan().any():
        raise ZtwError(f"logits: {int(logits.isnan().sum())} values are NaN")
    if labels is not None:
        if labels.shape != logits.shape[1:2]:
            raise ZtwError(f"labels: shape {tuple(labels.shape)}, must be ({logits.shape[1]},)")
        if labels.min() < 0 or labels.max() >= logits.shape[2]:
            raise ZtwError(f"labels: must lie in 0..{logits.shape[2] - 1}, got up to {int(labels.max())}")
    if cost is not None:
        if cost.shape != logits.shape[:1]:
            raise ZtwError(f"cost: shape {tuple(cost.shape)}, must be ({logits.shape[0]},)")
        if not (cost > 0).all() or not (cost.diff() > 0).all():
            raise ZtwError(f"cost: must be positive and strictly increasing, got {cost.tolist()}")


def sweep(
    logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    rule: str,
    parameters: Tensor | Sequence[float] | None = None,
    points: int = 1000,
) -> Curve:
    """Evaluate an exit rule at every parameter, all in one pass over the samples.

    logits: (K, N, C), of single exits or ensembles; labels: int64 (N,); cost: (K,) cumulative MACs;
    rule: a name of RULES; parameters: thresholds to try, None = the rule's own grid of about
    2 * `points`. Raises ZtwError for malformed input.

    A sample has left by exit k exactly when the largest score of exits up to k passes the bound, so
    the running maximum, binned once, answers all parameters: memory is (K, N), whatever T is.
    """
    kind = exit_rule(rule)
    cost = torch.as_tensor(cost, dtype=torch.float64)
    check_logits(logits, labels, cost)
    logits, labels = logits.detach().cpu(), labels.cpu()
    scores = exit_scores(logits, kind)
    parameter = (
        kind.grid(scores, points)
        if parameters is None
        else torch.as_tensor(parameters, dtype=torch.float64).flatten()
    )
    bounds = torch.tensor(
        [
            kind(value).bound  # type: ignore[call-arg]
            for value in parameter.tolist()
        ],
        dtype=torch.float64,
    )
    left, right = _departures(scores, logits.argmax(-1) == labels, bounds)
    exit_fraction = left / labels.numel()
    return Curve(parameter, right / labels.numel(), exit_fraction @ cost, exit_fraction)


def _departures(scores: Tensor, correct: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """How many samples leave at each exit (T, K), and how many leave with the right answer (T,)."""
    exits, samples = scores.shape
    order = bounds.argsort()
    running = scores.cummax(0).values
    # number of bounds strictly below a sample's running maximum: it has left for those, in sorted order
    passed = torch.searchsorted(bounds[order], running.contiguous(), side="left")
    passed[-1] = len(bounds)  # the last exit takes the rest

    def departed(exit: int, weights: Tensor) -> Tensor:
        """Sum of weights (N,) over the samples that have left by `exit`, for every bound (T,)."""
        histogram = torch.bincount(passed[exit], weights.double(), minlength=len(bounds) + 1)
        return histogram.flip(0).cumsum(0).flip(0)[1:]

    everyone = torch.ones(samples)
    gone = torch.stack([departed(exit, everyone) for exit in range(exits)], dim=1)
    right_here = [departed(exit, correct[exit]) for exit in range(exits)]
    right_before = [departed(exit, correct[exit + 1]) for exit in range(exits - 1)]
    left, right = torch.empty_like(gone), torch.empty_like(gone[:, 0])
    left[order] = gone.diff(dim=1, prepend=torch.zeros(len(bounds), 1, dtype=gone.dtype))
    right[order] = sum(right_here) - sum(right_before, torch.zeros(len(bounds), dtype=gone.dtype))
    return left, right


def at_budget(curve: Curve, budgets: Sequence[float | str], base_cost: float) -> list[int | None]:
    """Index of the parameter each budget allows, None where none is cheap enough.

    budgets: fractions of `base_cost` (MACs of the backbone alone), each the largest mean cost
    allowed, or "max" for the most accurate parameter whatever it costs. Of the parameters within a
    budget the costliest is taken, of equally costly ones the most cautious: the paper's "largest
    threshold whose mean cost is below". Raises ZtwError for a budget that is not positive.
    """
    chosen: list[int | None] = []
    for budget in budgets:
        if budget == "max":
            chosen.append(int(curve.accuracy.argmax()))
            continue
        if isinstance(budget, str) or not budget > 0:
            raise ZtwError(f"budget {budget!r}: must be a fraction of the backbone's cost above 0, or 'max'")
        # one part in 1e12: the mean over exit fractions rounds
        within = (curve.cost <= budget * base_cost * (1 + 1e-12)).nonzero().flatten()
        if not len(within):
            chosen.append(None)
            continue
        costs = curve.cost[within]
        chosen.append(int(within[costs == costs.max()][-1]))
    return chosen


def accuracy_at_budget(curve: Curve, budgets: Sequence[float | str], base_cost: float) -> Tensor:
    """Accuracies (B,) at the parameter that `at_budget` picks; NaN where no parameter is cheap enough."""
    return torch.tensor(
        [
            float("nan") if index is None else float(curve.accuracy[index])
            for index in at_budget(curve, budgets, base_cost)
        ],
        dtype=torch.float64,
    )


def exit_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Accuracy (K,) of every exit if all samples left there."""
    check_logits(logits, labels)
    return (logits.argmax(-1) == labels).double().mean(1)


def hindsight_improvability(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of an exit's errors that some earlier exit had right (K,), first 0; lower is better.

    HI_m = #{exit m wrong and some exit j < m right} / #{exit m wrong} (ZTW 2021, section 4).
    An exit that makes no error has nothing to improve: 0.
    """
    check_logits(logits, labels)
    right = logits.argmax(-1) == labels
    right_before = torch.zeros_like(right)
    right_before[1:] = right.long().cumsum(0)[:-1] > 0
    wrong = (~right).sum(1)
    wasted = (~right & right_before).sum(1).double()
    return torch.where(wrong > 0, wasted / wrong.clamp(min=1), 0.0)
