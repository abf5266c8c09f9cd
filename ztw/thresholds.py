"""How thresholds are chosen from held-out data: one table, THRESHOLDS.

Every way answers with candidates from the cheapest to the most cautious; a budget then picks one of
them. A new way is one class here and one entry in the table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from scipy.stats import beta
from torch import Tensor

from ztw.errors import ZtwError, unknown
from ztw.evaluation import check_logits, departures, scored
from ztw.rules import ExitRule, ThresholdRule, exit_rule, exit_scores

TIE = 1e-9  # sums of gains closer than this are equal
DELTA = 0.1  # the guarantee of `risk_controlled` may fail on this share of the draws of held-out data


@dataclass(frozen=True)
class Candidates:
    """What a way of choosing thresholds offers, from the cheapest to the most cautious.

    parameter: float64 (T,), what the way varies; thresholds: float64, the same for all exits (T,) or
    one per exit but the last (T, K - 1).
    """

    parameter: Tensor
    thresholds: Tensor


class ThresholdChoice(ABC):
    """One way of choosing thresholds."""

    @abstractmethod
    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
    ) -> Candidates:
        """Candidates from held-out data.

        logits: (K, N, C), of single exits or ensembles; labels: int64 (N,); cost: (K,) cumulative
        MACs; rule: a name of RULES; points: how fine a shared grid is. Raises ZtwError for malformed
        input, an unknown rule, or a rule without a threshold where the way needs one.
        """


def candidates(
    choice: str, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
) -> Candidates:
    """Candidates of one entry of THRESHOLDS; see `ThresholdChoice.candidates`. ZtwError for an unknown name."""
    if choice not in THRESHOLDS:
        raise unknown("choice of thresholds", choice, THRESHOLDS)
    return THRESHOLDS[choice].candidates(logits, labels, cost, rule, points)


def at(rule: str, candidates: Candidates, index: int) -> ExitRule:
    """The rule object of one row of the candidates, for `infer` and `decide`."""
    value = candidates.thresholds[index].tolist()
    return exit_rule(rule)(value)  # type: ignore[call-arg]


@dataclass(frozen=True)
class _Held:
    """Held-out data as the ways below need it.

    kind: the rule; scores float64 and correct bool (K, N), see `scored`; spent: (K,) cost as a share
    of the last exit's.
    """

    kind: type[ThresholdRule]
    scores: Tensor
    correct: Tensor
    spent: Tensor
    classes: int

    @property
    def closed(self) -> float:
        """A bound that nothing passes, on other data either: rounding lifts no score this high."""
        return self.kind.top + 1.0


def _held(choice: str, logits: Tensor, labels: Tensor, cost: Tensor, rule: str) -> _Held:
    kind = exit_rule(rule)
    if not issubclass(kind, ThresholdRule):
        raise ZtwError(f"thresholds {choice!r}: the rule {rule} has none; use shared")
    cost = torch.as_tensor(cost, dtype=torch.float64).cpu()
    check_logits(logits, labels, cost)
    return _Held(kind, *scored(logits, labels, kind), cost / cost[-1], logits.shape[2])


def _midway(upper: Tensor, lower: Tensor) -> Tensor:
    """Bounds that `upper` passes and the smaller `lower` does not, even where they are neighbours."""
    middle = (upper + lower) / 2
    return torch.where(middle < upper, middle, lower)


def _below(score: Tensor) -> Tensor:
    """Bounds just below the smallest score seen, so that it passes."""
    return score - 1e-6 * score.abs().clamp(min=1.0)


def _geometric(start: float, end: float, steps: int) -> Tensor:
    """`steps` values in equal ratios."""
    return torch.logspace(math.log10(start), math.log10(end), steps, dtype=torch.float64)


@dataclass(frozen=True)
class Shared(ThresholdChoice):
    """One threshold for all exits: the rule's own grid; parameter = the threshold."""

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
    ) -> Candidates:
        """Candidates (T,), about 2 * `points` of them."""
        kind = exit_rule(rule)
        check_logits(logits, labels, torch.as_tensor(cost))
        grid = kind.grid(exit_scores(logits.detach().cpu(), kind), points)
        return Candidates(grid, grid)


@dataclass(frozen=True)
class AllowedLoss(ThresholdChoice):
    """One threshold per exit from an allowed loss of accuracy eps (Berestizshevsky & Even 2019).

    delta_k(eps) = the smallest delta with acc_k(delta) >= max_delta acc_k(delta) - eps, where
    acc_k(delta) = the accuracy of exit k on all samples with confidence >= delta. parameter = eps,
    0 and `steps` geometric ones up to 1, at which everything leaves at the first exit.
    Trap: the maximum is 1 as soon as the single most confident sample is right, so a small eps may
    rest on a handful of samples; the definition is followed as it stands.
    """

    steps: int = 100

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
    ) -> Candidates:
        """Candidates (T, K - 1); sorting answers all eps at once, O(K N log N)."""
        held = _held("allowed_loss", logits, labels, cost, rule)
        eps = torch.cat([_geometric(1.0, 1e-4, self.steps), torch.zeros(1, dtype=torch.float64)])
        bounds = eps.new_empty(len(eps), len(held.scores) - 1)
        for exit in range(bounds.shape[1]):
            bounds[:, exit] = _smallest_allowed(held.scores[exit], held.correct[exit], eps)
        return Candidates(eps, held.kind.thresholds(bounds))


def _smallest_allowed(score: Tensor, correct: Tensor, eps: Tensor) -> Tensor:
    """Bounds (T,) that the samples with score >= delta(eps) pass and no others; score, correct: (N,)."""
    score, order = score.sort(descending=True)
    # delta can only part samples of different scores
    ends = torch.cat([score[1:] < score[:-1], torch.ones(1, dtype=torch.bool)]).nonzero().flatten()
    accuracy = correct[order].double().cumsum(0)[ends] / (ends + 1)
    bounds = _below(score)[ends]
    bounds[:-1] = _midway(score[ends[:-1]], score[ends[:-1] + 1])
    # the best accuracy at this delta or a smaller one falls as delta does, so it can be searched
    still = accuracy.flip(0).cummax(0).values
    wanted = accuracy.max() - eps - TIE
    return bounds.flip(0)[torch.searchsorted(still, wanted)]


@dataclass(frozen=True)
class RiskControlled(ThresholdChoice):
    """One threshold for all exits with a guarantee (Jazbec et al. 2024; Angelopoulos et al. 2021).

    A sample's loss at a threshold is 1 when its early answer is wrong and the answer of the full run
    (with `best_answers` the most confident exit's) is right; the mean loss, the risk, bounds the
    accuracy lost against always running to the end. For ONE eps fixed beforehand and data drawn like
    the held-out samples, P(risk <= eps) >= 1 - delta; choosing eps by its cost voids that.
    Fixed-sequence testing over a grid that does not depend on the data: from the most cautious
    threshold downwards while the Clopper-Pearson upper bound of the risk at level 1 - delta stays
    <= eps; where not even the first passes, nobody leaves early. parameter = eps, geometric.
    """

    delta: float = DELTA
    lowest: float = 1e-3
    highest: float = 0.5
    steps: int = 60

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
    ) -> Candidates:
        """Candidates (T,); the risk at all thresholds comes from one pass."""
        held = _held("risk_controlled", logits, labels, cost, rule)
        bounds = _fixed_grid(held, points)
        _, lost = departures(held.scores, ~held.correct & held.correct[-1], bounds)
        samples = held.scores.shape[1]
        upper = torch.ones_like(lost)  # where every sample is lost
        some = lost < samples
        upper[some] = torch.from_numpy(
            beta.ppf(1 - self.delta, (lost[some] + 1).numpy(), (samples - lost[some]).numpy())
        )
        eps = _geometric(self.highest, self.lowest, self.steps)
        # how many tests, from the first, pass without a failure in between
        passed = torch.searchsorted(upper.cummax(0).values, eps, side="right")
        closed_first = torch.cat([bounds.new_full((1,), held.closed), bounds])
        return Candidates(eps, held.kind.thresholds(closed_first[passed]))


def _fixed_grid(held: _Held, points: int) -> Tensor:
    """Bounds from the most cautious to one that everything passes; they depend on the rule and C only."""
    width = held.kind.top - held.kind.worst(held.classes) + 1e-5
    even = torch.linspace(0, width, points, dtype=torch.float64)
    near_top = width * torch.logspace(-7, 0, points, dtype=torch.float64)
    return held.kind.top - torch.cat([even, near_top]).unique()


@dataclass(frozen=True)
class PerExit(ThresholdChoice):
    """One threshold per exit, fitted together (the per-exit thresholds of BranchyNet 2016, learned).

    Maximises accuracy - lambda * mean cost / cost of the last exit on the held-out data by coordinate
    ascent over the exits, each solved exactly given the others. parameter = lambda, from where
    everything leaves at the first exit down to `lowest`, and 0; new ones halve the largest gaps in cost.
    On that data no candidate is worse, at its lambda, than any threshold of the shared grid.
    """

    lowest: float = 1e-4
    first: int = 16
    steps: int = 60
    rounds: int = 6

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
    ) -> Candidates:
        """Candidates (T, K - 1), T <= `steps`; O(T * rounds * K * N) after one sort per exit."""
        held = _held("per_exit", logits, labels, cost, rule)
        path = _Path(held, _shared_starts(held, points), self.rounds)
        # a right answer one exit later is worth less than its cost, so that nobody should go on
        dearest = 1.01 / float(held.spent[:2].diff().sum()) if len(held.spent) > 1 else 1.0
        path.solve(0.0)
        for weight in _geometric(dearest, self.lowest, self.first).tolist():
            path.solve(weight)
        while len(path.found) < self.steps and (middle := path.widest_gap()) is not None:
            path.solve(middle)
        weights = torch.tensor([found.weight for found in path.found], dtype=torch.float64)
        bounds = torch.stack([path.best(float(weight)).bounds for weight in weights])
        return Candidates(weights, held.kind.thresholds(bounds))


@dataclass(frozen=True)
class _Shared:
    """The shared grid on the held-out data: bounds, accuracy and spent (mean share of the full cost), (T,)."""

    bounds: Tensor
    accuracy: Tensor
    spent: Tensor

    def best(self, weight: float) -> float:
        """The best bound at a lambda; of equally good ones the most cautious."""
        value = self.accuracy - weight * self.spent
        return float(self.bounds[(value >= value.max() - TIE).nonzero()[-1]])


def _shared_starts(held: _Held, points: int) -> _Shared:
    bounds = held.kind.thresholds(held.kind.grid(held.scores, points))  # its own inverse
    left, right = departures(held.scores, held.correct, bounds)
    samples = held.scores.shape[1]
    return _Shared(bounds, right / samples, left / samples @ held.spent)


@dataclass(frozen=True)
class _Found:
    """Bounds (K - 1,) found at a lambda (`weight`), with their accuracy and mean share of the full cost."""

    weight: float
    bounds: Tensor
    accuracy: float
    spent: float

    def value(self, weight: float) -> float:
        """The objective at a lambda."""
        return self.accuracy - weight * self.spent


class _Path:
    """The solutions found so far, `found`, by falling lambda; each warms its neighbours up."""

    def __init__(self, held: _Held, shared: _Shared, rounds: int) -> None:
        self.held, self.shared, self.rounds = held, shared, rounds
        self.order = held.scores[:-1].argsort(dim=1, descending=True)  # (K - 1, N)
        self.found: list[_Found] = []

    def solve(self, weight: float) -> None:
        """Add the best of the ascents from the best shared bound and from the two neighbours."""
        place = sum(other.weight > weight for other in self.found)
        shared = torch.full((len(self.order),), self.shared.best(weight), dtype=torch.float64)
        starts = [shared, *(other.bounds for other in self.found[max(0, place - 1) : place + 1])]
        ends = [self._ascend(start, weight) for start in starts]
        self.found.insert(place, max(ends, key=lambda end: end.value(weight)))

    def best(self, weight: float) -> _Found:
        """The best of all solutions at a lambda, of equals the costliest: so cost rises as lambda falls."""
        return max(self.found, key=lambda found: (found.value(weight), found.spent))

    def widest_gap(self) -> float | None:
        """The lambda halfway, geometrically, across the largest jump in cost; None if all are narrow."""
        gaps = [
            (after.spent - before.spent, (before.weight * after.weight) ** 0.5)
            for before, after in zip(self.found[:-2], self.found[1:-1], strict=True)
            if before.weight > 1.01 * after.weight and after.spent - before.spent > 1e-3
        ]
        return max(gaps)[1] if gaps else None

    def _ascend(self, bounds: Tensor, weight: float) -> _Found:
        end = self._evaluated(bounds, weight)
        for _ in range(self.rounds):
            before, end = end, self._evaluated(self._round(end.bounds, weight), weight)
            if end.value(weight) <= before.value(weight) + TIE:
                break
        return end

    def _evaluated(self, bounds: Tensor, weight: float) -> _Found:
        exit = self._reached(bounds).sum(0) - 1
        accuracy = self.held.correct.gather(0, exit[None]).double().mean()
        return _Found(weight, bounds, float(accuracy), float(self.held.spent[exit].mean()))

    def _reached(self, bounds: Tensor) -> Tensor:
        """Which samples reach an exit, bool (K, N)."""
        reached = torch.ones_like(self.held.correct)
        reached[1:] = (self.held.scores[:-1] <= bounds[:, None]).cumprod(0).bool()
        return reached

    def _round(self, bounds: Tensor, weight: float) -> Tensor:
        """Solve every exit once, from the last to the first: who reaches it and what staying is worth are known.

        Neither depends on the bounds still to come in this round, so no step makes things worse.
        """
        held, bounds, reached = self.held, bounds.clone(), self._reached(bounds)
        value = held.correct.double() - weight * held.spent[:, None]  # of leaving at an exit, (K, N)
        staying = value[-1]
        for exit in reversed(range(len(bounds))):
            score, order = held.scores[exit], self.order[exit]
            order = order[reached[exit][order]]
            if len(order):  # else keep the bound: nothing depends on it now
                bounds[exit] = self._best_bound(score[order], (value[exit] - staying)[order])
            staying = torch.where(score > bounds[exit], value[exit], staying)
        return bounds

    def _best_bound(self, score: Tensor, gain: Tensor) -> float:
        """The bound with the largest total gain of those that pass; score, gain: (R,), scores falling."""
        ends = torch.cat([score[1:] < score[:-1], torch.ones(1, dtype=torch.bool)])
        total = torch.where(ends, gain.cumsum(0), -torch.inf)
        most = float(total.max())
        if most <= TIE:
            return self.held.closed
        last = int((total >= most - TIE).nonzero()[0])  # of equals the most cautious: the fewest leave
        if last == len(score) - 1:
            return float(_below(score[last]))
        return float(_midway(score[last], score[last + 1]))


THRESHOLDS: dict[str, ThresholdChoice] = {
    "shared": Shared(),
    "per_exit": PerExit(),
    "allowed_loss": AllowedLoss(),
    "risk_controlled": RiskControlled(),
}
