"""Draw the main figure: the headline methods and the static networks, accuracy against cost in one panel."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ztw.evaluation.names import BACKBONE
from ztw.reporting.drawing import draw_backbone, draw_band, draw_statics
from ztw.reporting.figures import COST, line_of
from ztw.reporting.labels import Names
from ztw.reporting.results import Metrics
from ztw.reporting.style import in_percent, new_panels, over_seeds, style

RIGHT = 1.1  # end of the axis of cost, if every method has a point before it
STEP = 0.005  # between two costs of a curve
WIDTH = 80  # letters in a line of the title


def main_figure(
    curves: pd.DataFrame,
    metrics: Metrics,
    families: Mapping[str, str],
    headline: Collection[str],
    title: str,
    finding: str = "",
    int8: Collection[str] = (),
) -> Figure:
    """Draw accuracy against relative cost of the headline methods and all static networks, in one panel.

    Curves, points, star and diamonds are those of `ztw.reporting.figures.accuracy_against_cost`.

    Args:
        curves: rows of all methods and seeds; only the test split is drawn.
        metrics: metrics of the same data set and architecture.
        families: see `style`.
        headline: the methods to draw, see `Study.headline`.
        finding: what the figure shows, from `ztw.reporting.finding.finding`; it is a part of the title.
        int8: methods in int8, which are left out, because their MACs are those of the float network.
    """
    figure, (axes,) = new_panels(1, 6.4, 4.2)
    rows = curves[curves["split"].eq("test") & ~curves["method"].isin(list(int8))]
    statics = rows[~rows["method"].isin(list(families))]
    shown = [method for method in families if method in headline and method not in int8]
    shown = [method for method in shown if rows["method"].eq(method).any()]
    right = _right(rows[rows["method"].isin([*shown, *statics["method"]])])
    looks = style(families)
    lines = {name: _draw(axes, rows[rows["method"].eq(name)], right, looks[name]) for name in shown}
    marks = draw_statics(axes, statics, "relative_cost") if len(statics) else {}
    backbone = metrics.loc[metrics["metric"] == "backbone_accuracy", "value"]
    if len(backbone):  # only known if an IC set is on the frozen backbone
        draw_backbone(axes, 1.0, backbone.mean())
    axes.axvline(1.0, color="0.6", lw=0.8, ls=":", zorder=0)
    seeds = rows.groupby("method")["seed"].nunique().reindex([*shown, *marks])
    axes.set(xlabel=COST, ylabel=over_seeds("test accuracy (%)", int(seeds.max() if len(seeds) else 1)))
    axes.set_title(_title(title, finding), loc="left", fontsize=10)
    in_percent(axes.xaxis, axes.yaxis)
    axes.set_xlim(0, right)
    axes.margins(y=0.08)
    axes.text(0, -0.17, fewer_seeds(seeds), transform=axes.transAxes, va="top", fontsize=7, color="0.3")
    figure.tight_layout()
    names = Names(axes)
    whole = {BACKBONE: (1.0, float(backbone.mean()))} if len(backbone) else {}
    names.at_marks({**marks, **whole}, fontsize=7)
    for method, line in lines.items():
        names.beside_line(line, method, color=line.get_color(), weight="bold", fontsize=10)
    return figure


def _title(title: str, finding: str) -> str:
    """Join title and finding, in one line or in lines of their own."""
    whole = f"{title}: {finding}" if finding else title
    return (
        whole if len(whole) <= WIDTH else f"{title}:\n{textwrap.fill(finding, WIDTH, break_on_hyphens=False)}"
    )


def _right(rows: pd.DataFrame) -> float:
    """Return the end of the axis of cost: RIGHT, or more if a method has no point before it."""
    cheapest = rows.groupby("method")["relative_cost"].min().max()
    return RIGHT if cheapest <= RIGHT or np.isnan(cheapest) else 1.05 * float(cheapest)


def _draw(axes: Axes, rows: pd.DataFrame, right: float, look: Mapping[str, Any]) -> Line2D:
    """Draw a method's curve up to the cost `right`, and return its line."""
    look = {**look, "linestyle": "-", "linewidth": 1.8}
    points = line_of(rows, np.arange(STEP, right + STEP / 2, STEP))
    if "seed" in points:
        draw_band(axes, points, "cost", "accuracy", markevery=(10, 40), **look)
        return axes.lines[-1]
    points = points.assign(std=rows.groupby("parameter")["accuracy"].std().fillna(0))[points["cost"] <= right]
    (line,) = axes.plot(points["cost"], points["accuracy"], ms=5, **look)
    axes.errorbar(points["cost"], points["accuracy"], points["std"], fmt="none", ecolor=look["color"], lw=1)
    return line


def fewer_seeds(seeds: pd.Series) -> str:
    """Say which methods have fewer seeds than others; seeds: method -> number. "" if all have the same."""
    fewer = seeds[seeds < seeds.max()].sort_values(ascending=False, kind="stable")
    parts = [(n, list(names)) for n, names in groupby(fewer.index, key=lambda name: int(fewer[name]))]
    return "; ".join(f"n = {n}: {', '.join(names)}" for n, names in parts)
