"""Draw the frontier: the best method of each kind at every budget."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ztw.reporting.frontier_table import MACS
from ztw.reporting.labels import Names
from ztw.reporting.style import COLUMNS, GREY, HANDLES, in_percent, new_panels
from ztw.study.kinds import CASCADE, EARLY_EXITS, FIXED_EXIT, STATIC

LOOKS: dict[str, dict[str, Any]] = {
    STATIC: {"color": "black", "marker": "D"},
    CASCADE: {"color": GREY, "marker": "s"},
    FIXED_EXIT: {"color": "#A6761D", "marker": "^"},
    EARLY_EXITS: {"color": "#B10026", "marker": "o"},
}


def draw_frontier(table: pd.DataFrame, title: str) -> Figure:
    """Draw test accuracy against the budget: a panel per unit of cost, a line per kind of method.

    A point is the method of its kind with the highest held-out accuracy within the budget. Names stand where the
    method changes.

    Args:
        table: from `read_frontier`, of one data set and architecture.
    """
    units = list(table["unit"].unique()) or [MACS]  # no method may fit any budget
    columns = min(len(units), COLUMNS)
    rows = -(-len(units) // columns)
    figure, panels = new_panels(columns, max(6.4, 3.8 * columns), 3.4 * rows + 0.6, rows=rows)
    for axes in panels[len(units) :]:
        axes.remove()
    panels = panels[: len(units)]
    for axes, unit in zip(panels, units, strict=True):
        _draw(axes, table[table["unit"].eq(unit)])
        axes.set_title(unit, loc="left", fontsize=10)
        axes.set_xlabel("budget (% of the backbone's cost)")
        in_percent(axes.xaxis, axes.yaxis)
        axes.margins(x=0.12, y=0.12)
    for axes in panels[::columns]:
        axes.set_ylabel("test accuracy (%)")
    lines = {str(line.get_label()): line for axes in panels for line in axes.lines}
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="lower center",
        ncols=max(1, len(lines)),
        fontsize="small",
        **HANDLES,
    )
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    for axes, unit in zip(panels, units, strict=True):
        _name_changes(axes, table[table["unit"].eq(unit)])
    return figure


def _draw(axes: Axes, here: pd.DataFrame) -> None:
    for kind, look in LOOKS.items():
        rows = here[here["kind"].eq(kind)].sort_values("budget")
        if len(rows):
            axes.plot(rows["budget"], rows["accuracy"], label=kind, ms=5, **look)


def _name_changes(axes: Axes, here: pd.DataFrame) -> None:
    """Write the names of methods, each where its kind has not had it at the budget before."""
    names = Names(axes)
    for kind, look in LOOKS.items():
        rows = here[here["kind"].eq(kind)].sort_values("budget")
        changes = rows[rows["method"].ne(rows["method"].shift())]
        for name, budget, accuracy in changes[["method", "budget", "accuracy"]].itertuples(index=False):
            names.at_marks({name: (budget, accuracy)}, fontsize=6.5, color=look["color"])
