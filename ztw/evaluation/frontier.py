"""Find the best method of each kind at every budget, and compare early exits with the best of the other kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ztw.evaluation.bootstrap import pairs_at_budgets
from ztw.evaluation.trainings import LEVEL, over_trainings
from ztw.study.kinds import EARLY_EXITS


@dataclass(frozen=True)
class Point:
    """An operating point of a method, with thresholds chosen on held-out samples.

    Args:
        kind: kind of the method, see `ztw.study.kinds`.
        cost: share of the backbone's cost, in the unit of the budgets; for MACs of the held-out samples.
        held_out: seed -> accuracy on the samples that chose the thresholds.
        correct: seed -> bool (N,), whether each test sample is classified correctly.
    """

    method: str
    kind: str
    cost: float
    held_out: Mapping[int, float]
    correct: Mapping[int, Tensor] = field(repr=False)

    @property
    def accuracy(self) -> float:
        """Mean test accuracy over the seeds."""
        return sum(_shares(self.correct.values())) / len(self.correct)


class Compared(NamedTuple):
    """A difference of test accuracies, early exits minus the rival.

    Attributes:
        low, high: 95 % interval over the test samples (paired bootstrap).
        low_trainings, high_trainings: 95 % interval over trainings (Student's t of the seeds' differences); NaN for
            fewer than 3 seeds.
        seeds: number of seeds that both have.
    """

    difference: float
    low: float
    high: float
    low_trainings: float
    high_trainings: float
    seeds: int


def best_of_kinds(points: Iterable[Point], budget: float) -> dict[str, Point]:
    """Return the point of each kind with the highest held-out accuracy within a budget; on a tie the cheapest.

    A method takes part only if all its seeds have the point. No test sample takes part in the choice.
    """
    best: dict[str, Point] = {}
    for point in points:
        if point.cost <= budget * (1 + 1e-9) and (
            point.kind not in best or _order(point) > _order(best[point.kind])
        ):
            best[point.kind] = point
    return best


def _order(point: Point) -> tuple[float, float]:
    return round(sum(point.held_out.values()) / len(point.held_out), 9), -point.cost


def rival_of(best: Mapping[str, Point]) -> Point | None:
    """Return the best point of the other kinds, by held-out accuracy; None if there is none."""
    others = [point for kind, point in best.items() if kind != EARLY_EXITS]
    return max(others, key=_order, default=None)


def compare(own: Point, rival: Point) -> Compared | None:
    """Compare early exits with a rival on the seeds of both; None if they have no seed in common."""
    seeds = [seed for seed in own.correct if seed in rival.correct]
    if not seeds:
        return None
    pair = {"own": own.correct, "rival": rival.correct}
    (row,) = pairs_at_budgets(
        {"": {name: {s: of[s] for s in seeds} for name, of in pair.items()}}, level=LEVEL
    )
    each = [
        first - second
        for first, second in zip(
            _shares(own.correct[s] for s in seeds), _shares(rival.correct[s] for s in seeds), strict=True
        )
    ]
    return Compared(row["difference"], row["low"], row["high"], *over_trainings(each), len(seeds))


def _shares(correct: Iterable[Tensor]) -> list[float]:
    return [float(one.double().mean()) for one in correct]


def frontier(points: Sequence[Point], budgets: Sequence[float]) -> list[dict[str, Any]]:
    """Return the best point of each kind at every budget, and how early exits compare with the best of the others.

    Args:
        points: all points of one data set, architecture and unit of cost.
        budgets: shares of the backbone's cost.

    Returns:
        One row per budget and kind: budget, kind, method, held_out, accuracy, cost, n. The row of early exits also has
        the rival's method and the fields of `Compared`.
    """
    rows = []
    for budget in budgets:
        best = best_of_kinds(points, budget)
        rival = rival_of(best)
        for kind, point in best.items():
            row: dict[str, Any] = {"budget": budget, "kind": kind, "method": point.method}
            row |= {"held_out": _order(point)[0], "accuracy": point.accuracy, "cost": point.cost}
            row["n"] = len(point.correct)
            if kind == EARLY_EXITS and rival is not None and (found := compare(point, rival)):
                row |= {"rival": rival.method, **found._asdict()}
            rows.append(row)
    return rows
