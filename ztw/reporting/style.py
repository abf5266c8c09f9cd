"""How figures look: readable in print and for colour-blind eyes; png and pdf of each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ztw.files import atomic

matplotlib.use("Agg")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
BACKBONE = "backbone alone"


def style(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each method: never colour alone."""
    colours = sns.color_palette("colorblind")  # its own ten: more would repeat with their markers
    return {
        method: {
            "color": colours[index % len(colours)],
            # one step further each time the colours start over, so that no two methods look the same
            "marker": MARKERS[(index + index // len(colours)) % len(MARKERS)],
            "linestyle": DASHES[(index + index // len(colours)) % len(DASHES)],
        }
        for index, method in enumerate(methods)
    }


def new_panels(
    count: int, width: float, height: float, grid: bool = True, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` rows of `count` panels side by side; all share their y axis, those of a column their x axis.

    width, height: of the figure, in inches.
    """
    sns.set_theme(style="whitegrid" if grid else "white", context="paper", font_scale=1.1)
    figure, panels = plt.subplots(
        rows, count, figsize=(width, height), sharex="col", sharey=True, squeeze=False
    )
    return figure, list(panels.flat)


def draw_band(axes: Axes, rows: pd.DataFrame, x: str, y: str, **look: Any) -> None:
    """A line of the means over seeds, in a band of one standard deviation (n - 1) to either side."""
    band = {"errorbar": "sd", "err_kws": {"alpha": 0.15, "lw": 0}}
    sns.lineplot(rows, x=x, y=y, ax=axes, legend=False, ms=5, mec=look["color"], **band, **look)


def draw_backbone(axes: Axes, x: Any, y: Any) -> None:
    """The backbone alone: a star."""
    axes.plot(x, y, marker="*", color="black", markersize=13, ls="", zorder=5, label=BACKBONE)


def in_percent(*axes: Any) -> None:
    """Show shares on these axes (`axes.xaxis`, ...) as percent."""
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def add_legend(axes: Axes) -> None:
    """The legend, to the right of the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def save(figure: Figure, stem: Path | str) -> None:
    """Write STEM.png and STEM.pdf, without a date so that equal figures are equal files."""
    for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        with atomic(f"{stem}.{kind}") as scratch:
            figure.savefig(scratch, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
