"""Compute what the report's slider shows: the operating point of every method within each budget. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ztw.reporting.readable import INFEASIBLE
from ztw.reporting.results import Metrics

STEP, LAST = 0.02, 1.1  # of the slider, in shares of the backbone's MACs
EXIT = "exit_fraction_"
NUMBERS = ("accuracy", "relative_cost", "parameter")


def slider_budgets(budgets: Iterable[float | str]) -> np.ndarray:
    """Return the budgets of the slider: a grid, and the numbers among the study's own budgets."""
    own = [float(budget) for budget in budgets if budget != "max"]
    steps = np.arange(1, round(max([LAST, *own]) / STEP) + 1) * STEP
    return np.unique(np.round([*steps, *own], 6))


def within_budgets(rows: pd.DataFrame, budgets: np.ndarray) -> pd.DataFrame:
    """Return the test results of one method and seed at the parameters that the validation split chooses.

    As `ztw.evaluation.metrics.at_budget`: the most expensive parameter within a budget, the last one on a tie.

    Args:
        rows: the curves; without a validation split, the test split chooses.
        budgets: (B,) shares of the backbone's cost.

    Returns:
        A row of the test curve for each feasible budget, with a column `budget`.
    """
    splits = dict(list(rows.groupby("split", sort=False)))
    chooser = splits.get("validation", splits["test"]).sort_values("relative_cost", kind="stable")
    costs = chooser["relative_cost"].to_numpy()
    # Published costs are in float32. 1e-12, because the mean cost has a rounding error
    tolerance = 1e-12 if costs.dtype == np.float64 else float(np.finfo(costs.dtype).eps)
    place = np.searchsorted(costs, budgets * (1 + tolerance), side="right") - 1
    chosen = chooser["parameter"].to_numpy()[place[place >= 0]]
    test = splits["test"].drop_duplicates("parameter").set_index("parameter")
    return test.loc[chosen].reset_index().assign(budget=budgets[place >= 0])


def operating_points(curves: pd.DataFrame, budgets: np.ndarray) -> pd.DataFrame:
    """Return mean, std and n over seeds of one method at each budget; NaN, and n = 0, where no seed is feasible.

    Columns: accuracy, relative_cost, parameter, `exit_fraction_<k>` if the curves have it, std (of the accuracy), n.
    """
    found = pd.concat([within_budgets(of_seed, budgets) for _, of_seed in curves.groupby("seed")])
    numbers = [*NUMBERS, *_exits(found)]
    at = found.groupby("budget")
    points = at[numbers].mean().assign(std=at["accuracy"].std(), n=at.size())
    return points.reindex(budgets).fillna({"n": 0}).astype({"n": int})


def _exits(rows: pd.DataFrame) -> list[str]:
    """Return the columns of the shares that leave at each exit; other methods may have more exits."""
    return [name for name in map(str, rows.columns) if name.startswith(EXIT) and rows[name].notna().any()]


def shares_at(points: pd.DataFrame, metrics: Metrics, protocol: str) -> dict[float, list[float]]:
    """Return budget -> the share of samples that leave at each exit.

    From the curves; a published study's curves lack it, so there from the metrics at the study's budgets.
    """
    columns = _exits(points)
    if columns:
        feasible = points.loc[points["n"].gt(0), columns]
        return {
            float(budget): row.tolist()
            for budget, row in zip(feasible.index, feasible.to_numpy(), strict=True)
        }
    own = metrics[metrics["metric"].eq("exit_fraction") & metrics["protocol"].eq(protocol)]
    means = own[own["budget"].ne("max")].groupby(["budget", "exit"])["value"].mean()
    return {float(str(budget)): means[budget].tolist() for budget in means.index.unique("budget")}


def fastest_times(times: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return batch -> method -> budget -> mean time of a sample in ms, in the fastest runtime; "" = no budget.

    times: from `read_latency`; of several numbers of threads, the largest is taken.
    """
    times = times[times["threads"].eq(times["threads"].max())]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (size, method, budget), speed in times.groupby(["batch_size", "method", "budget"], sort=False)[
        "images_per_s"
    ]:
        name = "" if budget == INFEASIBLE else str(budget)
        found.setdefault(str(size), {}).setdefault(str(method), {})[name] = 1000 / float(speed.max())
    return found


def rounded(values: Iterable[float], digits: int = 6) -> list[float | None]:
    """Round numbers for JSON, with None for NaN."""
    return [None if math.isnan(value) else round(float(value), digits) for value in values]


def explored(
    curves: pd.DataFrame,
    metrics: Metrics,
    methods: Sequence[str],
    budgets: np.ndarray,
    protocol: str,
    times: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[dict[str, Any]]:
    """Return, for every method, what the slider shows at each of its budgets, as values for JSON.

    Args:
        curves: of all methods and seeds of one data set and architecture; metrics: of the same.
        protocol: the study's first.
        times: from `fastest_times`.
    """
    found = []
    for method in methods:
        points = operating_points(curves[curves["method"].eq(method)], budgets)
        shares = shares_at(points, metrics[metrics["method"].eq(method)], protocol)
        found.append(
            {
                "name": method,
                **{name: rounded(points[name]) for name in ("accuracy", "std", "relative_cost", "parameter")},
                "n": points["n"].tolist(),
                "shares": [[budget, rounded(of_exits, 4)] for budget, of_exits in sorted(shares.items())],
                "times": {batch: dict(of[method]) for batch, of in times.items() if method in of},
            }
        )
    return found
