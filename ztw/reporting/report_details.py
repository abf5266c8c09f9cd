"""Make the folded parts of the report: curves, exits, latency, calibration and thresholds of one cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ztw.reporting import charts
from ztw.reporting.charts import drawn
from ztw.reporting.explorer import fastest_times
from ztw.reporting.report_source import CellSource, threads
from ztw.reporting.report_tables import calibration_table, threshold_table, time_tables

POINTS = 60  # of a curve
HINDSIGHT = (
    "Hindsight improvability: the share of an exit's errors that an earlier exit classifies correctly. Lower is"
    " better."
)
CALIBRATION = (
    "Expected calibration error (ECE) of each exit: the mean difference between confidence and accuracy. Lower is"
    " better."
)


def details(cell: CellSource, budget: str) -> list[dict[str, Any]]:
    """Return the parts (title, text, charts, tables); budget: of the table of calibration."""
    methods, looks = list(cell.looks), cell.looks
    budgets = [str(value) for value in cell.study.evaluation.budgets]
    curves = charts.curve_chart(_curves(cell, methods), looks, cell.network)
    calibrated = calibration_table(cell.metrics, cell.methods, cell.protocol, budget)
    thresholds = threshold_table(cell.metrics, _rules(cell, methods), cell.protocol, budgets)
    text = f"Accuracy against mean cost at every threshold, {cell.title}"
    parts = [
        {"title": "Curves", "text": "", "charts": [drawn(curves, text)], "tables": []},
        {
            "title": "Exits",
            "text": HINDSIGHT,
            "charts": [
                *_by_exit(cell, "accuracy", "test accuracy at this exit"),
                *_by_exit(cell, "hindsight_improvability", "hindsight improvability"),
            ],
            "tables": [],
        },
        *([] if cell.times is None else [_latency(cell, budgets)]),
        {
            "title": "Calibration",
            "text": CALIBRATION,
            "charts": _by_exit(cell, "ece", "calibration error (ECE)"),
            "tables": [calibrated],
        },
        {"title": "Thresholds", "text": "", "charts": [], "tables": [thresholds]},
    ]
    return parts


def _curves(cell: CellSource, methods: list[str]) -> pd.DataFrame:
    """Return cost and accuracy on the test split, means over seeds at POINTS quantiles of the thresholds."""
    of_test = cell.curves[cell.curves["split"].eq("test")]
    found = []
    for method in methods:
        seeds = [_thinned(rows) for _, rows in of_test[of_test["method"].eq(method)].groupby("seed")]
        shortest = min(map(len, seeds))
        mean = np.mean([rows[:shortest] for rows in seeds], axis=0)
        found.append(pd.DataFrame(mean.round(5), columns=["cost", "accuracy"]).assign(method=method))
    return pd.concat(found, ignore_index=True)


def _thinned(rows: pd.DataFrame) -> np.ndarray:
    """Return at most POINTS rows (cost, accuracy) of one seed's curve, at equal distances of cost."""
    rows = rows.sort_values("relative_cost", kind="stable")[["relative_cost", "accuracy"]].drop_duplicates()
    costs = rows["relative_cost"].to_numpy()
    if len(costs) <= POINTS:
        return rows.to_numpy(dtype=float)
    wanted = np.linspace(costs[0], costs[-1], POINTS)
    return rows.to_numpy(dtype=float)[np.searchsorted(costs, wanted, side="left")]


def _by_exit(cell: CellSource, metric: str, title: str) -> list[dict[str, str]]:
    """Return a chart of a metric of every exit, mean over seeds; none if no method has several exits."""
    own = cell.metrics[
        cell.metrics["metric"].eq(metric) & cell.metrics["exit"].gt(0) & cell.metrics["protocol"].eq("")
    ]
    own = own[own["method"].isin(cell.looks)]
    means = own.groupby(["method", "exit"], sort=False)["value"].mean().round(5).reset_index()
    if means.empty:
        return []
    return [drawn(charts.by_exit_chart(means, cell.looks, title), f"{title} of every exit, {cell.title}")]


def _latency(cell: CellSource, budgets: list[str]) -> dict[str, Any]:
    assert cell.times is not None
    times, accuracy = fastest_times(cell.times), _accuracies(cell.times)
    made = []
    for size, methods in times.items():
        rows = [
            {"method": method, "budget": budget, "time": ms, "accuracy": accuracy.get((method, budget))}
            for method, of_budget in methods.items()
            for budget, ms in of_budget.items()
            if budget != "max"
        ]
        text = f"Accuracy against the mean time of a sample, batch size {size}, {cell.title}"
        looks = {name: look for name, look in cell.looks.items() if name in methods}
        made.append(drawn(charts.time_chart(pd.DataFrame(rows), looks, size), text))
    device = cell.times.iloc[0]
    where = f"Measured on {device['device']} with {threads(cell.times['threads'].max())}"
    return {
        "title": "Latency",
        "text": f"{where}, first seed. Diamonds are networks without exits.",
        "charts": made,
        "tables": time_tables(times, budgets),
    }


def _accuracies(times: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return the test accuracy of the timed seed by (method, budget), "" for no budget."""
    rows = times.drop_duplicates(["method", "budget"])
    budgets = rows["budget"].where(rows["budget"].ne("-"), "")
    return {
        (method, budget): round(float(accuracy), 5)
        for method, budget, accuracy in zip(rows["method"], budgets, rows["accuracy"], strict=True)
    }


def _rules(cell: CellSource, methods: list[str]) -> dict[str, str]:
    """Return each method's rule and its way to choose thresholds, in words."""
    rows = {name: cell.study.methods[name] for name in methods}
    return {
        name: row.rule.replace("_", " ")
        + ("" if row.thresholds == "shared" else f", thresholds {row.thresholds.replace('_', ' ')}")
        for name, row in rows.items()
    }
