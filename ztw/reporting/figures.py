"""Draw figures of accuracy against cost, in operations and in measured time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ztw.evaluation.names import BACKBONE
from ztw.reporting.readable import INFEASIBLE
from ztw.reporting.results import Metrics
from ztw.reporting.style import (
    add_legends,
    draw_backbone,
    draw_band,
    draw_faint,
    draw_statics,
    in_percent,
    label_all,
    new_panels,
    over_seeds,
    panels_of,
    place_names,
    style,
)

# Shares of the backbone's cost at which seeds are averaged; scaled up for curves above 2
GRID = np.linspace(0.02, 2.0, 199)


def accuracy_against_cost(
    curves: pd.DataFrame,
    metrics: Metrics,
    families: Mapping[str, str],
    title: str,
) -> Figure:
    """Draw accuracy against relative cost: a curve per method, mean over seeds with a band of one std.

    A rule with whole-number parameters, such as patience, is a row of points. The star is the backbone alone, diamonds
    are static networks. With many methods each panel shows one family, and the other methods in grey.

    Args:
        curves: rows of all methods and seeds; only the test split is drawn.
        metrics: metrics of the same data set and architecture.
        families: see `style`.
    """
    groups = panels_of(families)
    figure, panels = new_panels(len(groups), 6.4 if len(groups) == 1 else 3.6 * len(groups), 4.2)
    of_test = curves[curves["split"].eq("test")]
    of_methods = of_test[of_test["method"].isin(list(families))]
    grid = GRID * max(1.0, of_methods["relative_cost"].max() / GRID[-1])
    lines = {method: _line(of_test[of_test["method"].eq(method)], grid) for method in families}
    looks, statics = style(families), of_test[~of_test["method"].isin(list(families))]
    backbone = metrics.loc[metrics["metric"] == "backbone_accuracy", "value"]
    seeds = of_methods["seed"].nunique()
    measured = over_seeds("test accuracy", seeds)
    for axes, (family, shown) in zip(panels, groups, strict=True):
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
            draw_statics(axes, statics, "relative_cost")
        if len(backbone):  # only known if an IC set is on the frozen backbone
            draw_backbone(axes, 1.0, backbone.mean())
        axes.set(title=family or title, ylabel=measured if axes is panels[0] else "", xlabel="")
        in_percent(axes.xaxis, axes.yaxis)
    label_all(figure, panels, "mean cost of a sample / the backbone's (MACs)", title)
    place_names(figure, panels)
    add_legends(panels)
    return figure


def _line(rows: pd.DataFrame, grid: np.ndarray) -> pd.DataFrame:
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


def accuracy_against_time(times: pd.DataFrame, families: Mapping[str, str], title: str) -> Figure:
    """Draw accuracy against measured time: a panel per runtime and batch size, a curve per method.

    A point is a budget (except "max"), with thresholds chosen on the validation split. 100 % is the backbone alone in
    its fastest runtime. The star is the backbone in the panel's runtime, diamonds are static networks. With many
    methods each column shows one family, and the other methods in grey.

    Args:
        times: from `read_latency`; of several numbers of threads, the largest is drawn.
        families: see `style`.
    """
    times = times[times["threads"].eq(times["threads"].max())]
    sizes, runtimes = sorted(times["batch_size"].unique()), list(times["runtime"].unique())
    measured, groups = list(product(runtimes, sizes)), panels_of(families)
    many = len(groups) > 1
    columns, rows = (len(groups), len(measured)) if many else (len(sizes), len(runtimes))
    figure, panels = new_panels(
        columns, 3.8 * columns, 3.0 * rows + 1.2, rows=rows, share_x="row" if many else "none"
    )
    looks = style(families)
    for axes, ((runtime, size), (family, shown)) in zip(panels, product(measured, groups), strict=True):
        here = times[times["runtime"].eq(runtime) & times["batch_size"].eq(size)]
        for method, look in looks.items():
            points = here[here["method"].eq(method) & here["budget"].ne("max")]
            if len(points) and method in shown:
                axes.plot(points["relative_time"], points["accuracy"], label=method, ms=5, lw=1.4, **look)
            elif len(points):
                draw_faint(axes, points, "relative_time", "accuracy")
        single = here[here["budget"].eq(INFEASIBLE)]
        alone = single["method"].eq(BACKBONE)
        if not alone.all():
            draw_statics(axes, single[~alone], "relative_time")
        draw_backbone(axes, single[alone]["relative_time"], single[alone]["accuracy"])
        axes.axvline(1.0, color="black", lw=0.8, ls=":")
        where = ", ".join([runtime, *here["precision"].unique(), f"batch size {size}"])
        axes.set_title(f"{family}\n{where}" if family and axes in panels[:columns] else where, fontsize=9)
        in_percent(axes.xaxis, axes.yaxis)
    for axes in panels:  # after drawing, because a fixed limit stops autoscaling
        axes.set_xlim(left=0)
    for axes in panels[::columns]:
        axes.set_ylabel("test accuracy")
    for axes in panels[-columns:]:
        axes.set_xlabel("measured time / the backbone's in its fastest runtime", size="small")
    figure.suptitle("{}, {device}".format(title, **times.iloc[0]))
    figure.tight_layout()
    place_names(figure, panels)
    add_legends(panels[-columns:] if many else [panels[columns - 1]], below=-0.32)
    return figure
