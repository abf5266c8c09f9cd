"""Draw accuracy against measured time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ztw.evaluation.names import BACKBONE
from ztw.reporting.drawing import draw_backbone, draw_statics
from ztw.reporting.labels import Names
from ztw.reporting.readable import INFEASIBLE
from ztw.reporting.style import INT8, STATIC, add_legend, in_percent, new_panels, style

TIME = "measured time (% of the backbone's in its fastest runtime)"
LOOKS: dict[str, dict[str, Any]] = {STATIC: {}, INT8: {"color": "0.5"}}


def accuracy_against_time(
    times: pd.DataFrame, families: Mapping[str, str], headline: Collection[str], title: str
) -> Figure:
    """Draw accuracy against measured time, at the smallest and the largest batch size.

    A curve is a headline method, a point is a budget (except "max") with thresholds chosen on the validation split.
    Each network is drawn in its fastest runtime; a network in the runtime that is not the backbone's has hollow marks.

    Args:
        times: from `read_latency`; of several numbers of threads, the largest is drawn.
        families: see `style`.
        headline: the methods to draw, see `Study.headline`.
    """
    shown = times["method"].isin(list(headline)) | times["budget"].eq(INFEASIBLE)
    times = times[times["threads"].eq(times["threads"].max()) & shown]
    sizes = sorted({times["batch_size"].min(), times["batch_size"].max()})
    figure, panels = new_panels(len(sizes), 5.2 * len(sizes), 4.2)
    looks = {name: look for name, look in style(families).items() if name in headline}
    drawn = []
    for axes, size in zip(panels, sizes, strict=True):
        here = in_fastest_runtime(times[times["batch_size"].eq(size)])
        drawn.append((axes, *_draw(axes, here, looks)))
        how = f"batch size {size}, {_threads(here['threads'].iloc[0])}"
        axes.set_title(f"{how}\n{_runtimes(here)}", loc="left", fontsize=9)
    _finish(figure, panels, title, times)
    for axes, lines, marks in drawn:
        names = Names(axes)
        names.at_marks(marks, fontsize=7)
        for name, line in lines.items():
            names.beside_line(line, name, color=line.get_color(), weight="bold", fontsize=9)
    return figure


def accuracy_against_all_times(times: pd.DataFrame, families: Mapping[str, str], title: str) -> Figure:
    """Draw accuracy against measured time of all methods: a panel per runtime, number of threads and batch size.

    Args:
        times: from `read_latency`.
        families: see `style`.
    """
    sizes, threads = sorted(times["batch_size"].unique()), sorted(times["threads"].unique())
    rows = list(product(times["runtime"].unique(), threads))
    figure, panels = new_panels(len(sizes), 4.4 * len(sizes), 3.0 * len(rows) + 0.6, rows=len(rows))
    looks, groups = style(families), times.groupby(["runtime", "threads", "batch_size"])
    measured = set(groups.groups)
    for axes, ((runtime, count), size) in zip(panels, product(rows, sizes), strict=True):
        if (runtime, count, size) not in measured:
            axes.remove()
            continue
        here = groups.get_group((runtime, count, size))
        _draw(axes, here, looks)
        how = ", ".join([runtime, *here["precision"].unique(), f"batch size {size}", _threads(count)])
        axes.set_title(how, loc="left", fontsize=9)
    _finish(figure, figure.axes, title, times)
    add_legend(figure, figure.axes)
    return figure


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def in_fastest_runtime(times: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each method in the runtime with its smallest mean time over the budgets.

    times: of one batch size and number of threads.
    """
    means = times.groupby(["method", "runtime"], sort=False)["relative_time"].mean().reset_index()
    fastest = means.sort_values("relative_time", kind="stable").drop_duplicates("method")
    return times.merge(fastest[["method", "runtime"]])


def _runtimes(here: pd.DataFrame) -> str:
    """Name the runtimes and their precisions, and what hollow marks mean."""
    own = here.loc[here["method"].eq(BACKBONE), "runtime"]
    kinds = here[["runtime", "precision"]].drop_duplicates()
    names = {
        runtime: f"{runtime} in {' or '.join(rows['precision'])}"
        for runtime, rows in kinds.groupby("runtime", sort=False)
    }
    first = next(iter(own), next(iter(names)))
    others = [name for runtime, name in names.items() if runtime != first]
    return names[first] + (f"; hollow marks: {', '.join(others)}" if others else "")


def _draw(
    axes: Axes, here: pd.DataFrame, looks: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Line2D], dict[str, tuple[float, float]]]:
    """Draw the methods of `looks`, the static networks and the backbone; return method -> line, network -> mark."""
    lines, marks = {}, dict[str, tuple[float, float]]()
    whole = here[here["budget"].eq(INFEASIBLE)]
    own = set(whole.loc[whole["method"].eq(BACKBONE), "runtime"]) or set(here["runtime"])
    for method, look in looks.items():
        points = here[here["method"].eq(method) & here["budget"].ne("max")].sort_values("relative_time")
        if len(points):
            filled = {} if set(points["runtime"]) <= own else {"mfc": "white"}
            (lines[method],) = axes.plot(
                points["relative_time"], points["accuracy"], label=method, ms=5, lw=1.5, **{**look, **filled}
            )
    alone, int8 = whole["method"].eq(BACKBONE), whole["precision"].eq("int8")
    for label, rows in ((STATIC, whole[~alone & ~int8]), (INT8, whole[~alone & int8])):
        if len(rows):
            marks |= draw_statics(axes, rows, "relative_time", label, **LOOKS[label])
            hollow = rows[~rows["runtime"].isin(own)]
            colour = LOOKS[label].get("color", "black")
            axes.plot(
                hollow["relative_time"], hollow["accuracy"], "D", ms=5, color=colour, mfc="white", zorder=4.5
            )
    if alone.any():
        draw_backbone(axes, whole[alone]["relative_time"], whole[alone]["accuracy"])
        marks[BACKBONE] = tuple(whole.loc[alone, ["relative_time", "accuracy"]].iloc[0])
    return lines, marks


def _finish(figure: Figure, panels: list[Axes], title: str, times: pd.DataFrame) -> None:
    for axes in panels:
        axes.axvline(1.0, color="0.6", lw=0.8, ls=":", zorder=0)
        in_percent(axes.xaxis, axes.yaxis)
        axes.margins(y=0.08)
        axes.set_xlim(left=0)  # after drawing, because a fixed limit stops autoscaling
    figure.supylabel("test accuracy (%)", fontsize="medium")
    figure.supxlabel(TIME, fontsize="medium")
    figure.suptitle(f"{title}, {times['device'].iloc[0]}")
    figure.tight_layout()
