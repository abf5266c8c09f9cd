"""Draw methods, static networks and the backbone in a panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from ztw.evaluation.names import BACKBONE
from ztw.reporting.style import OTHERS, STATIC


def draw_band(axes: Axes, rows: pd.DataFrame, x: str, y: str, **look: Any) -> None:
    """Draw the mean over seeds as a line, with a band of one standard deviation (n - 1)."""
    band = {"errorbar": "sd", "err_kws": {"alpha": 0.15, "lw": 0}}
    sns.lineplot(rows, x=x, y=y, ax=axes, legend=False, ms=5, mec=look["color"], **band, **look)


def draw_faint(axes: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Draw the mean over seeds of another panel's method as a grey line."""
    means = rows.groupby(x)[y].mean()
    axes.plot(means.index, means, color="0.85", lw=0.9, zorder=0, label=OTHERS)


def draw_statics(
    axes: Axes, points: pd.DataFrame, x: str, label: str = STATIC, **look: Any
) -> Mapping[str, tuple[float, float]]:
    """Draw static networks as diamonds, joined by a dotted line: mean over seeds, with one standard deviation.

    Args:
        points: columns x, accuracy and method, one row per seed.

    Returns:
        Method -> its point, from the smallest x.
    """
    by_method = points.groupby("method", sort=False)
    means, spread = by_method[[x, "accuracy"]].mean().sort_values(x), by_method["accuracy"].std()
    colour = look.setdefault("color", "black")
    drawn: dict[str, Any] = {"marker": "D", "ms": 5, "ls": (0, (1, 2.2)), "lw": 1.0, "zorder": 4}
    axes.plot(means[x], means["accuracy"], label=label, **drawn | look)
    axes.errorbar(
        means[x], means["accuracy"], spread[means.index].fillna(0), fmt="none", ecolor=colour, elinewidth=1
    )
    return {str(name): (row[x], row["accuracy"]) for name, row in means.iterrows()}


def draw_backbone(axes: Axes, x: Any, y: Any) -> None:
    """Draw the backbone alone as a star."""
    axes.plot(x, y, marker="*", color="black", markersize=12, ls="", zorder=5, label=BACKBONE)
