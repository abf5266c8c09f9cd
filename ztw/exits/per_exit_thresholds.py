"""One threshold per exit, optimised jointly by coordinate ascent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ztw.exits.sweep import departures
from ztw.exits.threshold_base import (
    TIE,
    Candidates,
    HeldOut,
    RuleKind,
    ThresholdChoice,
    geometric,
    just_below,
    midway,
    prepare_held_out,
)


@dataclass(frozen=True)
class PerExit(ThresholdChoice):
    """One threshold per exit as in BranchyNet (2016), optimised jointly on held-out data.

    Coordinate ascent maximises accuracy - lambda * mean cost / cost of the last exit. Each step finds the best
    threshold of one exit, given the others. `Candidates.parameter` is lambda. At its first value, all samples leave at
    the first exit. It falls in `first` geometric steps to `lowest`, then to 0. Further values are added where the cost
    changes most. At its lambda, a candidate is at least as good as any threshold of the shared grid.
    """

    lowest: float = 1e-4
    first: int = 16
    steps: int = 60
    rounds: int = 6

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: RuleKind, points: int = 1000
    ) -> Candidates:
        """Return candidates (T, K - 1), T <= `steps`, in O(T * rounds * K * N) after one sort per exit."""
        held_out = prepare_held_out("per_exit", logits, labels, cost, rule)
        path = _SolutionPath(held_out, _shared_starts(held_out, points), self.rounds)
        # a correct prediction is worth less than the cost of the next exit, so all samples leave at the first
        to_second_exit = float(held_out.relative_cost[:2].diff().sum())
        highest = 1.01 / to_second_exit if to_second_exit else 1.0
        path.solve(0.0)
        for weight in geometric(highest, self.lowest, self.first).tolist():
            path.solve(weight)
        while len(path.found) < self.steps and (middle := path.widest_gap()) is not None:
            path.solve(middle)
        weights = torch.tensor([found.weight for found in path.found], dtype=torch.float64)
        bounds = torch.stack([path.best(float(weight)).bounds for weight in weights])
        return Candidates(weights, held_out.kind.thresholds(bounds))


@dataclass(frozen=True)
class _Shared:
    """Bounds of the shared grid, with their accuracy and mean relative cost on the held-out data, (T,) each."""

    bounds: Tensor
    accuracy: Tensor
    relative_cost: Tensor

    def best(self, weight: float) -> float:
        """Return the best bound at a lambda; on a tie the last one."""
        value = self.accuracy - weight * self.relative_cost
        return float(self.bounds[(value >= value.max() - TIE).nonzero()[-1]])


def _shared_starts(held_out: HeldOut, points: int) -> _Shared:
    # `thresholds` converts in both directions
    bounds = held_out.kind.thresholds(held_out.kind.grid(held_out.scores, points))
    left, right = departures(held_out.scores, held_out.correct, bounds)
    samples = held_out.scores.shape[1]
    return _Shared(bounds, right / samples, left / samples @ held_out.relative_cost)


@dataclass(frozen=True)
class _Solution:
    """Bounds (K - 1,) found at a lambda (`weight`), with their accuracy and mean relative cost."""

    weight: float
    bounds: Tensor
    accuracy: float
    relative_cost: float

    def value(self, weight: float) -> float:
        """Return the objective at a lambda."""
        return self.accuracy - weight * self.relative_cost


class _SolutionPath:
    """Solutions in the order of falling lambda. Each is a start for its neighbours."""

    def __init__(self, held_out: HeldOut, shared: _Shared, rounds: int) -> None:
        self.held_out, self.shared, self.rounds = held_out, shared, rounds
        self.order = held_out.scores[:-1].argsort(dim=1, descending=True)  # (K - 1, N)
        self.found: list[_Solution] = []

    def solve(self, weight: float) -> None:
        """Add the best result of three ascents: from the best shared bound and from the two neighbours."""
        place = sum(other.weight > weight for other in self.found)
        shared = torch.full((len(self.order),), self.shared.best(weight), dtype=torch.float64)
        starts = [shared, *(other.bounds for other in self.found[max(0, place - 1) : place + 1])]
        ends = [self._ascend(start, weight) for start in starts]
        self.found.insert(place, max(ends, key=lambda end: end.value(weight)))

    def best(self, weight: float) -> _Solution:
        """Return the best solution at a lambda; on a tie the most expensive, so that cost rises as lambda falls."""
        return max(self.found, key=lambda found: (found.value(weight), found.relative_cost))

    def widest_gap(self) -> float | None:
        """Return the geometric mean of the two lambdas with the largest gap in cost; None if all gaps are narrow."""
        gaps = [
            (after.relative_cost - before.relative_cost, (before.weight * after.weight) ** 0.5)
            for before, after in zip(self.found[:-2], self.found[1:-1], strict=True)
            if before.weight > 1.01 * after.weight and after.relative_cost - before.relative_cost > 1e-3
        ]
        return max(gaps)[1] if gaps else None

    def _ascend(self, bounds: Tensor, weight: float) -> _Solution:
        end = self._evaluated(bounds, weight)
        for _ in range(self.rounds):
            before, end = end, self._evaluated(self._round(end.bounds, weight), weight)
            if end.value(weight) <= before.value(weight) + TIE:
                break
        return end

    def _evaluated(self, bounds: Tensor, weight: float) -> _Solution:
        exit = self._reached(bounds).sum(0) - 1
        accuracy = self.held_out.correct.gather(0, exit[None]).double().mean()
        return _Solution(weight, bounds, float(accuracy), float(self.held_out.relative_cost[exit].mean()))

    def _reached(self, bounds: Tensor) -> Tensor:
        """Return which samples reach each exit, bool (K, N)."""
        reached = torch.ones_like(self.held_out.correct)
        reached[1:] = (self.held_out.scores[:-1] <= bounds[:, None]).cumprod(0).bool()
        return reached

    def _round(self, bounds: Tensor, weight: float) -> Tensor:
        """Optimise the bound of every exit once, from the last exit to the first.

        A step needs the samples that reach the exit, and their value if they stay. The first depends on bounds of
        earlier exits, which are still unchanged. The second depends on bounds of later exits, which are final. So no
        step lowers the objective.
        """
        held_out, bounds, reached = self.held_out, bounds.clone(), self._reached(bounds)
        # value of leaving at each exit, (K, N)
        value = held_out.correct.double() - weight * held_out.relative_cost[:, None]
        staying = value[-1]
        for exit in reversed(range(len(bounds))):
            score, order = held_out.scores[exit], self.order[exit]
            order = order[reached[exit][order]]
            if len(order):  # otherwise no sample reaches the exit: keep its bound
                bounds[exit] = self._best_bound(score[order], (value[exit] - staying)[order])
            staying = torch.where(score > bounds[exit], value[exit], staying)
        return bounds

    def _best_bound(self, score: Tensor, gain: Tensor) -> float:
        """Return the bound with the largest total gain of samples above it; score, gain: (R,), by falling score."""
        ends = torch.cat([score[1:] < score[:-1], torch.ones(1, dtype=torch.bool)])
        total = torch.where(ends, gain.cumsum(0), -torch.inf)
        most = float(total.max())
        if most <= TIE:
            return self.held_out.closed_bound
        last = int((total >= most - TIE).nonzero()[0])  # on a tie the fewest samples leave
        if last == len(score) - 1:
            return float(just_below(score[last]))
        return float(midway(score[last], score[last + 1]))
