"""Draw the frontier: the best method of each kind at every budget."""

from __future__ import annotations

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ztw.reporting.frontier_table import MACS
from ztw.reporting.style import MARKERS, in_percent, new_panels
from ztw.study.kinds import KINDS


def draw_frontier(table: pd.DataFrame, title: str) -> Figure:
    """Draw test accuracy against the budget: a panel per unit of cost, a line per kind of method.

    A point is the method of its kind with the highest held-out accuracy within the budget. Names stand where the
    method changes.

    Args:
        table: from `read_frontier`, of one data set and architecture.
    """
    units = list(table["unit"].unique()) or [MACS]  # no method may fit any budget
    columns = min(len(units), 3)
    rows = -(-len(units) // columns)
    figure, panels = new_panels(columns, max(6.4, 4.6 * columns), 3.8 * rows + 0.6, rows=rows)
    colours = dict(
        zip(KINDS, (sns.color_palette("colorblind")[place] for place in (7, 4, 1, 2)), strict=True)
    )
    for axes in panels[len(units) :]:
        axes.remove()
    for axes, unit in zip(panels[: len(units)], units, strict=True):
        here = table[table["unit"].eq(unit)]
        for number, kind in enumerate(KINDS):
            best = here[here["kind"].eq(kind)].sort_values("budget")
            if best.empty:
                continue
            axes.plot(
                best["budget"],
                best["accuracy"],
                label=kind,
                color=colours[kind],
                marker=MARKERS[number],
                ms=5,
            )
            _name_changes(axes, best, colours[kind], above=number % 2 == 0)
        axes.set_title(unit)
        axes.set_xlabel("budget / the backbone's cost")
        in_percent(axes.xaxis, axes.yaxis)
        axes.margins(x=0.12, y=0.12)
    for axes in panels[::columns]:
        axes.set_ylabel("test accuracy")
    lines = {str(line.get_label()): line for axes in panels[: len(units)] for line in axes.lines}
    look: dict[str, Any] = {
        "frameon": False,
        "loc": "lower center",
        "ncols": max(1, len(lines)),
        "fontsize": "small",
    }
    figure.legend(list(lines.values()), list(lines), **look)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


def _name_changes(axes: Axes, rows: pd.DataFrame, colour: tuple[float, ...], above: bool) -> None:
    for row in rows[rows["method"].ne(rows["method"].shift())].itertuples():
        axes.annotate(
            str(row.method),
            (row.budget, row.accuracy),
            textcoords="offset points",
            xytext=(0, 6 if above else -11),
            ha="center",
            fontsize=6,
            color=colour,
        )
