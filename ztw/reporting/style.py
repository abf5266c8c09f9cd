"""Style, lay out and save figures, readable in print and with colour blindness."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from ztw.evaluation.names import BACKBONE
from ztw.files import atomic

matplotlib.rcdefaults()  # ignore matplotlibrc: figures are the same for every user
matplotlib.use("Agg")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
# family -> (index in seaborn's palette "colorblind", title)
FAMILIES = {
    "frozen": (0, "single exits, backbone frozen"),
    "recycled": (3, "recycled: cascade, ensemble"),
    "together": (2, "trained with the backbone"),
    "networks": (4, "cascades of static networks"),
}
MOST = 6  # lines in one panel, at most
OTHERS = "in the other panels"  # label of grey lines
STATIC = "static networks"  # label of diamonds
LONG = 24  # letters of a name that is too long for a legend of two columns
# Places for a static network's name: (points to the right, points up), alignment
NAMES: tuple[Any, ...] = (((0, 5), "center"), ((0, -10), "center"), ((4, -8), "left"))
MARK = 4  # half the width of a marker in pixels
HANDLES: dict[str, Any] = {"frameon": False, "handlelength": 3.2}  # one period of the longest dashes


def style(families: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return each method's style: the colour of its family (a key of FAMILIES), and its own marker and line."""
    colours, seen, looks = sns.color_palette("colorblind"), Counter[str](), {}
    for method, family in families.items():
        index = seen[family]
        seen[family] += 1
        looks[method] = {
            "color": colours[FAMILIES[family][0]],
            "marker": MARKERS[index % len(MARKERS)],
            # Shifted when the markers repeat, so that no two methods look the same
            "linestyle": DASHES[(index + index // len(MARKERS)) % len(DASHES)],
        }
    return looks


def panels_of(families: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Divide methods into panels (title, methods): one without a title for up to MOST methods, else by family."""
    if len(families) <= MOST:
        return [("", list(families))]
    panels = []
    for family, (_, title) in FAMILIES.items():
        members = [method for method, own in families.items() if own == family]
        count = math.ceil(len(members) / MOST)
        for part in range(count):  # parts of similar size
            own = members[part * len(members) // count : (part + 1) * len(members) // count]
            panels.append((title if count == 1 else f"{title} ({part + 1}/{count})", own))
    return panels


def new_panels(
    count: int,
    width: float,
    height: float,
    grid: bool = True,
    rows: int = 1,
    share_x: Literal["none", "row"] = "none",
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `rows` rows of `count` panels that share their y axis.

    Args:
        width, height: size of the figure, in inches.
        share_x: "row" = the panels of a row share their x axis.
    """
    sns.set_theme(style="whitegrid" if grid else "white", context="paper", font_scale=1.1)
    figure, panels = plt.subplots(
        rows, count, figsize=(width, height), sharex=share_x, sharey=True, squeeze=False
    )
    return figure, list(panels.flat)


def draw_band(axes: Axes, rows: pd.DataFrame, x: str, y: str, **look: Any) -> None:
    """Draw the mean over seeds as a line, with a band of one standard deviation (n - 1)."""
    band = {"errorbar": "sd", "err_kws": {"alpha": 0.15, "lw": 0}}
    sns.lineplot(rows, x=x, y=y, ax=axes, legend=False, ms=5, mec=look["color"], **band, **look)


def draw_faint(axes: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """Draw the mean over seeds of another panel's method as a grey line."""
    means = rows.groupby(x)[y].mean()
    axes.plot(means.index, means, color="0.85", lw=0.9, zorder=0, label=OTHERS)


def draw_statics(axes: Axes, points: pd.DataFrame, x: str) -> None:
    """Draw static networks as diamonds with their names: mean over seeds, with one standard deviation.

    points: columns x, accuracy and method, one row per seed.
    """
    by_method = points.groupby("method", sort=False)
    means, spread = by_method[[x, "accuracy"]].mean().sort_values(x), by_method["accuracy"].std()
    look: dict[str, Any] = {
        "marker": "D",
        "ms": 5,
        "color": "black",
        "ls": (0, (1, 3)),
        "lw": 1.0,
        "zorder": 4,
    }
    axes.plot(means[x], means["accuracy"], label=STATIC, **look)
    axes.errorbar(
        means[x], means["accuracy"], spread[means.index].fillna(0), fmt="none", ecolor="black", elinewidth=1
    )
    look = {"fontsize": 6.5, "textcoords": "offset points", "zorder": 5}
    look["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]  # readable on a curve
    for name, row in means.iterrows():
        axes.annotate(str(name), (row[x], row["accuracy"]), xytext=(0, 0), **look)


def place_names(figure: Figure, panels: Sequence[Axes]) -> None:
    """Move each name of `draw_statics` to a free place: above its mark, below it, or below to the right.

    Call it after all drawing, when the sizes of the panels are final.
    """
    figure.draw_without_rendering()
    for axes in panels:
        lines = [line for line in axes.lines if line.get_label() in (STATIC, BACKBONE)]
        marks = [mark for line in lines for mark in axes.transData.transform(line.get_xydata())]
        taken = [Bbox([mark - MARK, mark + MARK]) for mark in marks]
        for name in axes.texts:
            for above, side in NAMES:
                name.set(position=above, ha=side)
                place = name.get_window_extent()
                if place.x0 > axes.bbox.x0 and not any(place.overlaps(other) for other in taken):
                    break
            taken.append(place)


def draw_backbone(axes: Axes, x: Any, y: Any) -> None:
    """Draw the backbone alone as a star."""
    axes.plot(x, y, marker="*", color="black", markersize=13, ls="", zorder=5, label=BACKBONE)


def label_all(figure: Figure, panels: Sequence[Axes], x: str, title: str) -> None:
    """Set the label of the x axes, and the title: of the figure, or of its only panel."""
    for axes in panels:
        axes.set_xlabel(x)
    if len(panels) == 1:
        panels[0].set_title(title)
        return
    for axes in panels:
        axes.xaxis.label.set_fontsize("small")
        axes.title.set_fontsize("small")
    figure.suptitle(title)
    figure.tight_layout()


def over_seeds(what: str, seeds: int) -> str:
    """Add the number of seeds to the label of an axis, if there are several."""
    return what + (f", mean ± std of {seeds} seeds" if seeds > 1 else "")


def in_percent(*axes: Any) -> None:
    """Show shares as percent on axes (`axes.xaxis`, ...)."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))


def add_legends(panels: Sequence[Axes], below: float = -0.24) -> None:
    """Add a legend to the right of the only panel, or one below each panel, at y = `below` panel heights."""
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))  # all grey lines have the same label
        if OTHERS in once:  # move it to the end
            once[OTHERS] = once.pop(OTHERS)
        where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        if len(panels) > 1:
            columns = 1 if max(map(len, once), default=0) > LONG else 2
            where = {"loc": "upper center", "bbox_to_anchor": (0.5, below), "ncol": columns, "fontsize": 7.5}
        axes.legend(list(once.values()), list(once), **where, **HANDLES)


def save(figure: Figure, path: Path) -> None:
    """Save a figure as PNG at `path` and as PDF beside it, without dates, so that equal figures are equal files."""
    for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        with atomic(path.with_suffix(f".{kind}")) as scratch:
            figure.savefig(scratch, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
