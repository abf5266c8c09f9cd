"""Draw all methods' accuracy against cost in operations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ztw.reporting.drawing import draw_backbone, draw_band, draw_faint, draw_statics
from ztw.reporting.labels import Names
from ztw.reporting.results import Metrics
from ztw.reporting.style import add_legends, in_percent, label_all, over_seeds, panels_by_family, style

# Shares of the backbone's cost at which seeds are averaged; scaled up for curves above 2
GRID = np.linspace(0.02, 2.0, 199)
COST = "mean cost of a sample (% of the backbone's MACs)"


def accuracy_against_cost(
    curves: pd.DataFrame,
    metrics: Metrics,
    families: Mapping[str, str],
    title: str,
) -> Figure:
    """Draw accuracy against relative cost of all methods, at all costs.

    A curve is the mean over seeds with a band of one standard deviation. A rule with whole-number parameters, such as
    patience, is a row of points. The star is the backbone alone, diamonds are static networks. With many methods each
    panel shows one family, and the other methods in grey.

    Args:
        curves: rows of all methods and seeds; only the test split is drawn.
        metrics: metrics of the same data set and architecture.
        families: see `style`.
    """
    figure, groups = panels_by_family(families)
    of_test = curves[curves["split"].eq("test")]
    of_methods = of_test[of_test["method"].isin(list(families))]
    grid = GRID * max(1.0, of_methods["relative_cost"].max() / GRID[-1])
    lines = {method: line_of(of_test[of_test["method"].eq(method)], grid) for method in families}
    looks, statics = style(families), of_test[~of_test["method"].isin(list(families))]
    backbone = metrics.loc[metrics["metric"] == "backbone_accuracy", "value"]
    marks: Mapping[str, tuple[float, float]] = {}
    for axes, family, shown in groups:
        for method in families:
            if method not in shown:
                draw_faint(axes, lines[method], "cost", "accuracy")
        for place, method in enumerate(shown):
            look = looks[method] | {"label": method}
            if "seed" not in lines[method]:
                axes.plot(lines[method]["cost"], lines[method]["accuracy"], markersize=5, **look)
            else:  # no two lines have their markers at the same costs
                draw_band(axes, lines[method], "cost", "accuracy", markevery=(3 * place, 18), **look)
        if len(statics):
            marks = draw_statics(axes, statics, "relative_cost", ls="")
        if len(backbone):  # only known if an IC set is on the frozen backbone
            draw_backbone(axes, 1.0, backbone.mean())
        axes.set(xlabel="", ylabel="")
        axes.set_title(family, loc="left", fontsize="medium")
        in_percent(axes.xaxis, axes.yaxis)
    label_all(figure, COST, over_seeds("test accuracy (%)", of_methods["seed"].nunique()), title)
    for axes in figure.axes:
        Names(axes).at_marks(marks, fontsize=6.5)
    add_legends(figure.axes)
    return figure


def line_of(rows: pd.DataFrame, grid: np.ndarray) -> pd.DataFrame:
    """Return cost and accuracy of every seed at the grid's costs; for whole-number parameters, the means at each."""
    if rows["parameter"].mod(1).any():  # a threshold is never whole: the grid starts 1e-6 below a score
        return _on_grid(rows, grid)
    points = rows.groupby("parameter")[["relative_cost", "accuracy"]].mean()
    return points.rename(columns={"relative_cost": "cost"})


def _on_grid(rows: pd.DataFrame, grid: np.ndarray) -> pd.DataFrame:
    """Return cost and accuracy of each seed, at those costs of the grid that all seeds reach."""
    accuracies = np.stack([accuracy_within(of_seed, grid) for _, of_seed in rows.groupby("seed")])
    reached = rows["relative_cost"].max() + grid[1] - grid[0] >= grid
    shown = ~np.isnan(accuracies).any(0) & reached
    return pd.DataFrame(
        {
            "cost": np.tile(grid[shown], len(accuracies)),
            "accuracy": accuracies[:, shown].flatten(),
            "seed": np.repeat(np.arange(len(accuracies)), int(shown.sum())),
        }
    )


def accuracy_within(rows: pd.DataFrame, budgets: np.ndarray) -> np.ndarray:
    """Return the accuracies (B,) of one seed's curve at budgets (B,), shares of the backbone's cost.

    The same as `ztw.evaluation.metrics.accuracy_at_budget`, without torch: NaN where no row is cheap enough.
    """
    rows = rows.sort_values("relative_cost", kind="stable")
    place = np.searchsorted(rows["relative_cost"], budgets * (1 + 1e-12), side="right") - 1
    return np.where(place < 0, np.nan, rows["accuracy"].to_numpy()[place])
