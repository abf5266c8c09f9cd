"""Accuracy and cost at every parameter of an exit rule, from the logits of all exits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.exits.logits import check_logits, class_labels
from ztw.exits.rules import ExitRule, ThresholdRule, as_rule, exit_rule, exit_scores, has_parameter
from ztw.tensors import as_tensor


@dataclass(frozen=True)
class Curve:
    """Accuracy and cost at each parameter of a rule, from `sweep`. All tensors are float64.

    Attributes:
        parameter: (T,), as given to `sweep`. The rule's own grid runs from the cheapest to the most expensive.
        accuracy: (T,), in [0, 1].
        cost: (T,), mean cost of a sample, in multiply-accumulate operations (MACs).
        exit_fraction: (T, K), share of samples that leave at each exit. Rows sum to 1.

    Example:
        >>> import torch, ztw
        >>> logits, labels = torch.randn(3, 100, 10), torch.arange(100) % 10
        >>> curve = ztw.sweep(logits, labels, [1.0, 2.0, 3.0], "entropy")
        >>> curve.cost[0], curve.cost[-1]
        (tensor(1., dtype=torch.float64), tensor(3., dtype=torch.float64))
    """

    parameter: Tensor
    accuracy: Tensor
    cost: Tensor
    exit_fraction: Tensor


def sweep(
    logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    rule: str | ExitRule | type[ExitRule],
    parameters: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
    points: int = 1000,
) -> Curve:
    """Compute the accuracy and cost of an exit rule at every parameter, from the logits of all exits.

    Args:
        logits: (K, N, C), of single exits or an ensemble.
        labels: int (N,).
        cost: (K,), cumulative MACs of the exits, see `ztw.macs`. For the rule "fixed_exit", the MACs of the network cut
            after each exit, in any order.
        rule: a name such as "max_softmax", or a class. A rule with its parameter, such as MaxSoftmax(0.9) or
            "max_softmax 0.9", is evaluated at this parameter only.
        parameters: (T,) for all exits, or one threshold per exit, (T, K - 1) or (T, K). None = the rule's own grid.
        points: resolution of the grid, which has about 2 * `points` values.

    Returns:
        The curve. With one threshold per exit, `Curve.parameter` holds the row numbers 0 ... T - 1.

    Raises:
        ZtwError: for an unknown rule, and for invalid logits, labels, costs or parameters.

    Example:
        >>> import torch, ztw
        >>> logits, labels = torch.randn(3, 100, 10), torch.arange(100) % 10
        >>> ztw.sweep(logits, labels, [1.0, 2.0, 3.0], "max_softmax", [0.0, 1.0]).exit_fraction[:, 0]
        tensor([1., 0.], dtype=torch.float64)
    """
    if parameters is None and has_parameter(rule):
        single = as_rule(rule)
        rule, parameters = type(single), [getattr(single, fields(single)[0].name)]  # type: ignore[arg-type]
    kind = exit_rule(rule)
    logits, labels, cost = check_logits(logits, labels, cost, increasing=not kind.single)
    scores, correct = scored(logits, labels, kind)
    if parameters is None:
        parameter = own_grid(kind, scores, cost, points)
    else:
        parameter = as_tensor(parameters, "parameters").double().cpu()
    if parameter.dim() == 2:
        left, right = _departures_per_exit(scores, correct, _bounds_per_exit(kind, parameter, len(cost)))
        parameter = torch.arange(len(parameter), dtype=torch.float64)
    else:
        parameter = parameter.flatten()
        left, right = departures(scores, correct, _bounds(kind, parameter, len(cost)))
    exit_fraction = left / labels.numel()
    return Curve(parameter, right / labels.numel(), exit_fraction @ cost, exit_fraction)


def simulate_exits(logits: Tensor, rule: ExitRule | str) -> tuple[Tensor, Tensor]:
    """Compute the exit at which each sample leaves, from the logits of all exits. It is the same as in `infer`.

    Args:
        logits: (K, N, C), of single exits or an ensemble.
        rule: a rule with its parameter, e.g. MaxSoftmax(0.9) or "max_softmax 0.9".

    Returns:
        The exit where each sample leaves, and the exit that predicts its class, both int64 (N,), from 0. They differ
        only for rules with `best_answers`, see `ExitRule`.

    Raises:
        ZtwError: for invalid logits or rules, and for thresholds for another number of exits.

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[3.0, 0.0], [0.1, 0.0]], [[3.0, 0.0], [3.0, 0.0]]])  # 2 exits, 2 samples
        >>> ztw.simulate_exits(logits, "max_softmax 0.9")
        (tensor([0, 1]), tensor([0, 1]))
    """
    logits = check_logits(logits).logits
    rule = as_rule(rule)
    scores = exit_scores(logits.detach().cpu(), type(rule))
    last = len(scores) - 1
    passes = torch.ones_like(scores, dtype=torch.uint8)
    passes[:last] = scores[:last] > rule.bounds(len(scores))[:, None]
    exit_index = passes.argmax(0)  # the first exit that passes
    best = scores.argmax(0) if rule.best_answers else last
    return exit_index, torch.where(exit_index == last, best, exit_index)


def scored(logits: Tensor, labels: Tensor, kind: type[ExitRule]) -> tuple[Tensor, Tensor]:
    """Return scores float64 (K, N), and bool (K, N): whether the prediction is correct if a sample leaves at an exit.

    For samples that leave at the last exit, a rule with `best_answers` takes the most confident exit's prediction.
    """
    logits, labels = logits.detach().cpu(), class_labels(labels).cpu()
    scores, correct = exit_scores(logits, kind), logits.argmax(-1) == labels
    if kind.best_answers:
        correct[-1] = correct.gather(0, scores.argmax(0, keepdim=True))[0]
    return scores, correct


def own_grid(kind: type[ExitRule], scores: Tensor, cost: Tensor, points: int) -> Tensor:
    """Return a rule's own grid (T,), from the cheapest parameter to the most expensive; see `ExitRule.grid`."""
    grid = kind.grid(scores, points)
    return grid[cost.argsort(stable=True)] if kind.single else grid


def _bounds(kind: type[ExitRule], parameter: Tensor, exits: int) -> Tensor:
    """Return the bounds (T,) of a rule at parameters (T,)."""
    if issubclass(kind, ThresholdRule) and not parameter.isnan().any():
        return kind.thresholds(parameter)  # bound = sign * threshold is its own inverse
    rules = [kind(value) for value in parameter.tolist()]  # type: ignore[call-arg]
    for rule in rules if kind.single else ():
        rule.bounds(exits)  # raises ZtwError for an exit that does not exist
    return torch.tensor([rule.bound for rule in rules], dtype=torch.float64)


def _bounds_per_exit(kind: type[ExitRule], thresholds: Tensor, exits: int) -> Tensor:
    """Return the bounds (T, K - 1) of a rule at thresholds (T, K - 1) or (T, K)."""
    if not issubclass(kind, ThresholdRule):
        raise ZtwError(
            f"parameters: shape {tuple(thresholds.shape)}, must be (T,) for {kind.__name__}, which takes one for all"
            " exits"
        )
    bounds = [kind(row).bounds(exits) for row in thresholds.tolist()]
    return torch.stack(bounds) if bounds else thresholds.new_empty(0, exits - 1)


def departures(scores: Tensor, correct: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Count the samples that leave at each exit (T, K), and the correct predictions (T,).

    A sample leaves by exit k if its largest score up to exit k exceeds the bound. A running maximum per sample
    therefore serves all bounds.

    Args:
        scores, correct: (K, N), see `scored`.
        bounds: (T,), each for all exits.
    """
    exits, samples = scores.shape
    ordered, order = bounds.sort()
    running = scores.cummax(0).values
    # A sample leaves at exit k under the sorted bounds before[k] ... by[k] - 1: its running maximum passes them at exit
    # k, but not at an earlier exit.
    by = torch.searchsorted(ordered, running.contiguous(), side="left")
    by[-1] = len(bounds)  # all remaining samples leave at the last exit
    before = torch.cat([by.new_zeros(1, samples), by[:-1]])
    size = len(bounds) + 1
    rows = size * torch.arange(exits)[:, None]
    changes = torch.bincount((before + rows).flatten(), minlength=exits * size)
    changes -= torch.bincount((by + rows).flatten(), minlength=exits * size)
    left = changes.view(exits, size)[:, :-1].cumsum(1)
    changes = torch.bincount(before[correct], minlength=size) - torch.bincount(by[correct], minlength=size)
    right = changes[:-1].cumsum(0)
    if not ordered.equal(bounds):
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        left, right = left[:, place], right[place]
    return left.T.double(), right.double()


def _departures_per_exit(scores: Tensor, correct: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Count as in `departures`, for bounds (T, K - 1). Blocks of rows limit the memory."""
    exits, samples = scores.shape
    left = torch.empty(len(bounds), exits, dtype=torch.float64)
    right = torch.zeros(len(bounds), dtype=torch.float64)
    for rows in torch.arange(len(bounds)).split(max(1, 2_000_000 // samples)):
        here = torch.ones(len(rows), samples, dtype=torch.bool)
        for exit in range(exits):
            leaving = here
            if exit < exits - 1:
                leaving = here & (scores[exit] > bounds[rows, exit, None])
            left[rows, exit] = leaving.sum(1).double()
            right[rows] += (leaving & correct[exit]).sum(1)
            here = here & ~leaving
    return left, right
