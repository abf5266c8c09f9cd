"""Figures of accuracy against what it costs: in operations, and in measured time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ztw.evaluation.metrics import accuracy_at_budget
from ztw.exits.rules import ThresholdRule, exit_rule
from ztw.exits.sweep import Curve
from ztw.reporting.results import Metrics
from ztw.reporting.style import BACKBONE, add_legend, draw_backbone, draw_band, in_percent, new_panels, style

if TYPE_CHECKING:  # only a type: the wording of a key must not count as a change of what is drawn
    from ztw.study.settings import MethodSettings

GRID = np.linspace(0.02, 2.0, 199)  # shares of the backbone's cost at which seeds are averaged


def accuracy_against_cost(
    curves: pd.DataFrame, metrics: Metrics, methods: Mapping[str, MethodSettings], title: str
) -> Figure:
    """Accuracy against relative cost, a curve a method (mean over seeds, band = one standard deviation).

    curves: rows of all methods and seeds, of which the test split's are drawn; metrics: of the same
    data set and architecture. A rule with few parameters is a row of points, not a curve. Small hollow markers are
    the single exits, if all samples left there; the star is the backbone alone.
    """
    figure, (axes,) = new_panels(1, 6.4, 4.2)
    exits = _single_exits(metrics)
    for method, look in style(methods).items():
        rows = curves[curves["method"].eq(method) & curves["split"].eq("test")]
        if issubclass(exit_rule(methods[method].rule), ThresholdRule):
            draw_band(axes, _on_grid(rows), "cost", "accuracy", label=method, markevery=12, **look)
        else:
            points = rows.groupby("parameter")[["relative_cost", "accuracy"]].mean()
            axes.plot(points["relative_cost"], points["accuracy"], label=method, markersize=5, **look)
        hollow = {"marker": look["marker"], "ms": 3.5, "mfc": "none", "mec": look["color"], "ls": ""}
        own = exits.loc[[method]]
        axes.plot(own["relative_cost"], own["accuracy"], **hollow)
    backbone = metrics.loc[metrics["metric"] == "backbone_accuracy", "value"]
    if len(backbone):  # some IC set left the backbone as it was
        draw_backbone(axes, 1.0, backbone.mean())
    axes.set(title=title, ylabel="test accuracy")
    axes.set_xlabel("mean cost of a sample / cost of the backbone (MACs)")
    in_percent(axes.xaxis, axes.yaxis)
    add_legend(axes)
    return figure


def _single_exits(metrics: Metrics) -> pd.DataFrame:
    """Mean relative cost and accuracy over seeds of every exit, by method and exit."""
    own = metrics[metrics["exit"].gt(0) & metrics["metric"].isin(["relative_cost", "accuracy"])]
    return own.pivot_table(index=["method", "exit"], columns="metric", values="value")


def _on_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """cost, accuracy of each seed at the shares of GRID that every seed reaches; rows: of one method."""
    curves = [_curve(of_seed) for _, of_seed in rows.groupby("seed")]
    accuracies = np.stack([accuracy_at_budget(curve, GRID.tolist(), 1.0).numpy() for curve in curves])
    largest = max(float(curve.cost.max()) for curve in curves)
    shown = ~np.isnan(accuracies).any(0) & (largest + GRID[1] - GRID[0] >= GRID)
    return pd.DataFrame(
        {"cost": np.tile(GRID[shown], len(curves)), "accuracy": accuracies[:, shown].flatten()}
    )


def _curve(rows: pd.DataFrame) -> Curve:
    def column(name: str) -> torch.Tensor:
        return torch.tensor(rows[name].to_numpy(), dtype=torch.float64)

    return Curve(column("parameter"), column("accuracy"), column("relative_cost"), torch.empty(len(rows), 0))


def accuracy_against_time(times: pd.DataFrame, methods: Sequence[str], title: str) -> Figure:
    """Accuracy against measured time, a row of panels a runtime, a panel a batch size, a curve a method.

    times: of `read_latency`; a point is a budget but "max", thresholds chosen on the validation split. 100 % is the
    backbone alone in the runtime that is fastest for it; the star is where it is in the panel's.
    """
    sizes, runtimes = sorted(times["batch_size"].unique()), list(times["runtime"].unique())
    figure, panels = new_panels(len(sizes), 4.2 * len(sizes), 3.6 * len(runtimes) + 0.6, rows=len(runtimes))
    for axes, (runtime, size) in zip(panels, product(runtimes, sizes), strict=True):
        here = times[times["runtime"].eq(runtime) & times["batch_size"].eq(size)]
        for method, look in style(methods).items():
            points = here[here["method"].eq(method) & here["budget"].ne("max")]
            if len(points):
                axes.plot(points["relative_time"], points["accuracy"], label=method, ms=5, lw=1.4, **look)
        alone = here[here["method"].eq(BACKBONE)]
        draw_backbone(axes, alone["relative_time"], alone["accuracy"])
        axes.axvline(1.0, color="black", lw=0.8, ls=":")
        axes.set_title(", ".join([runtime, *here["precision"].unique(), f"batch size {size}"]))
        axes.set_xlim(left=0)
        in_percent(axes.xaxis, axes.yaxis)
        if size == sizes[0]:
            axes.set_ylabel("test accuracy")
    figure.supxlabel("measured time / time of the backbone alone in its fastest runtime")
    figure.suptitle("{}, {device}".format(title, **times.iloc[0]))
    add_legend(panels[len(sizes) - 1])
    figure.tight_layout()
    return figure
