"""Compare early exits with what one would use instead, at every budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ztw.evaluation.correct import read_correct
from ztw.evaluation.frontier import Point, frontier
from ztw.evaluation.names import BACKBONE
from ztw.jobs.job import Job
from ztw.reporting.frontier_table import COLUMNS, MACS, time_unit, write_frontier
from ztw.reporting.latency_table import HOW, read_latency
from ztw.reporting.readable import INFEASIBLE
from ztw.reporting.results import read_curves, results_of
from ztw.study.layout import Cell, Layout
from ztw.study.settings import EvaluationSettings


@dataclass(frozen=True)
class CompareFrontierSettings:
    """Settings of the frontier.

    Args:
        kinds: method -> kind, see `ztw.study.kinds`.
        cells: (data set, architecture, seed) of every cell.
        timed: (data set, architecture) with measured latency.
        int8: methods in int8. They take part in time only, because their MACs are those of the float network.
    """

    kinds: dict[str, str]
    evaluation: EvaluationSettings
    cells: tuple[tuple[str, str, int], ...]
    timed: tuple[tuple[str, str], ...] = ()
    int8: tuple[str, ...] = ()


def compare_frontier(job: Job, settings: CompareFrontierSettings, partial: bool = False) -> None:
    """Write the table of the frontier, in MACs and in measured times; partial: see `results_of`."""
    cells = [Cell(*names) for names in settings.cells]
    rows: list[dict[str, Any]] = []
    for dataset, arch in dict.fromkeys((cell.dataset, cell.arch) for cell in cells):
        job.report(f"{dataset}/{arch}")
        own = [cell for cell in cells if (cell.dataset, cell.arch) == (dataset, arch)]
        points = _points(job.layout, own, settings, partial)
        budgets = [budget for budget in settings.evaluation.budgets if isinstance(budget, int | float)]
        in_float = [of for method, of in points.items() if method not in settings.int8]
        units = {MACS: [point for of in in_float for point in of.values()]}
        if (dataset, arch) in settings.timed:
            units |= _timed(points, read_latency(job.layout.table("latency"), dataset, arch))
        named = {"dataset": dataset, "arch": arch}
        rows += [
            {**named, "unit": unit, **row}
            for unit, found in units.items()
            for row in frontier(found, sorted(budgets))
        ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_frontier(table, job.layout.table("frontier"), job.layout.table("frontier", "md"))


def _points(
    layout: Layout, cells: Sequence[Cell], settings: CompareFrontierSettings, partial: bool
) -> dict[str, dict[str, Point]]:
    """Return method -> budget -> its point in MACs, for budgets that are feasible for all its seeds."""
    found = results_of(layout, cells, tuple(settings.kinds), partial)
    points: dict[str, dict[str, Point]] = {}
    for method, kind in settings.kinds.items():
        own = [cell for cell, name in found if name == method]
        correct = {cell.seed: read_correct(layout.correct(cell, method)) for cell in own}
        held_out = {cell.seed: _held_out(layout, cell, method) for cell in own}
        points[method] = {}
        for budget in map(str, settings.evaluation.budgets):
            name = f"held-out@{budget}"
            if not correct or not all(name in of_seed for of_seed in correct.values()):
                continue
            chosen = {seed: at_budget(curve, budget) for seed, curve in held_out.items()}
            points[method][budget] = Point(
                method,
                kind,
                float(pd.Series([row["relative_cost"] for row in chosen.values()]).mean()),
                {seed: float(row["accuracy"]) for seed, row in chosen.items()},
                {seed: of_seed[name] for seed, of_seed in correct.items()},
            )
    return points


def _held_out(layout: Layout, cell: Cell, method: str) -> pd.DataFrame:
    curve = read_curves([layout.curves(cell, method)])
    return curve[curve["split"].eq("validation")].sort_values("relative_cost", kind="stable")


def at_budget(curve: pd.DataFrame, budget: str) -> Mapping[str, float]:
    """Return the row of a curve within a budget, as `ztw.evaluation.metrics.at_budget` does.

    Args:
        curve: in order of relative_cost.
    """
    if budget == "max":
        rows = curve[curve["accuracy"].eq(curve["accuracy"].max())].head(1)
    else:
        rows = curve[curve["relative_cost"] <= float(budget) * (1 + 1e-6)].tail(
            1
        )  # published costs are float32
    return {name: float(rows[name].iloc[0]) for name in ("relative_cost", "accuracy")}


def _timed(points: Mapping[str, Mapping[str, Point]], times: pd.DataFrame) -> dict[str, list[Point]]:
    """Return unit -> points whose cost is the measured time, each in the runtime that is fastest for it."""
    methods = times[times["method"].ne(BACKBONE)]
    groups = [(rows[HOW].iloc[0].astype(int), rows) for _, rows in methods.groupby(HOW)]
    return {time_unit(*how): list(_with_times(points, rows)) for how, rows in groups}


def _with_times(points: Mapping[str, Mapping[str, Point]], rows: pd.DataFrame) -> Iterator[Point]:
    fastest = rows.groupby(["method", "budget"], sort=False)["relative_time"].min().reset_index()
    for method, budget, time in fastest.itertuples(index=False, name=None):
        # A static network is timed without a budget, and the same at all budgets
        at = "max" if budget == INFEASIBLE else budget
        own = points.get(method, {})
        point = own.get(at) or (next(iter(own.values()), None) if budget == INFEASIBLE else None)
        if point is not None:
            yield Point(method, point.kind, float(time), point.held_out, point.correct)
