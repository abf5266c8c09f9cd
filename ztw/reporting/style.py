"""Style, lay out and save figures, readable in print and with colour blindness."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ztw.evaluation.names import BACKBONE
from ztw.files import atomic

matplotlib.rcdefaults()  # ignore matplotlibrc: figures are the same for every user
matplotlib.use("Agg")

# Okabe and Ito's colours without black and yellow, and two more
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#6A51A3")
GREY = "#595959"  # cascades of static networks
MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
# Methods with the same look in every study. The order gives methods of one family different colours.
KNOWN = (
    *("sdn", "pabee", "ztw", "ensemble", "cascade", "joint", "sdn-original", "pabee-original"),
    *("ztw-nostop", "ztw-arithmetic", "branchynet", "cascaded-inference", "boostnet", "layer-wise"),
    *("risk-controlled", "ztw-uniform", "joint-entropy", "joint-ensemble", "sdn-original-ic-only"),
    "sdn-entropy",
)
NETWORKS = "networks"
FAMILIES = {
    "frozen": "single exits, backbone frozen",
    "recycled": "recycled: cascade, ensemble",
    "together": "trained with the backbone",
    NETWORKS: "cascades of static networks",
}
MOST = 6  # lines in one panel, at most
COLUMNS = 3  # panels in a row, at most
OTHERS = "in the other panels"  # label of grey lines
STATIC = "static networks"  # label of diamonds
INT8 = "static networks, int8"
EVERYWHERE = (OTHERS, STATIC, INT8, BACKBONE)
HANDLES: dict[str, Any] = {"frameon": False, "handlelength": 3.2}  # one period of the longest dashes


def style(families: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return each method's colour (as "#RRGGBB"), marker and line, the same in all figures.

    Methods in KNOWN look the same in all studies. Others take the next free look, in the order of the study. Cascades
    of static networks are grey.

    Args:
        families: method -> family, a key of FAMILIES; all methods of the study, whether drawn or not.
    """
    known = [name for name in KNOWN if name in families]
    free = (number for number in count() if number not in map(KNOWN.index, known))
    networks = count()
    looks = {}
    for name, family in families.items():
        if family == NETWORKS:
            looks[name] = _look(GREY, next(networks), shift=1)
        else:
            number = KNOWN.index(name) if name in known else next(free)
            looks[name] = _look(COLOURS[number % len(COLOURS)], number)
    return looks


def _look(colour: str, number: int, shift: int = 0) -> dict[str, Any]:
    dashes = DASHES[(number // len(COLOURS) + shift) % len(DASHES)]
    return {"color": colour, "marker": MARKERS[number % len(MARKERS)], "linestyle": dashes}


def known_first(methods: Iterable[str]) -> list[str]:
    """Sort methods: those in KNOWN first, in its order."""
    return sorted(methods, key=lambda name: KNOWN.index(name) if name in KNOWN else len(KNOWN))


def panels_of(families: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Divide methods into panels (title, methods): one without a title for up to MOST methods, else by family."""
    if len(families) <= MOST:
        return [("", list(families))]
    panels = []
    for family, title in FAMILIES.items():
        members = [method for method, own in families.items() if own == family]
        parts = math.ceil(len(members) / MOST)
        for part in range(parts):  # parts of similar size
            own = members[part * len(members) // parts : (part + 1) * len(members) // parts]
            panels.append((title if parts == 1 else f"{title} ({part + 1}/{parts})", own))
    return panels


def panels_by_family(families: Mapping[str, str]) -> tuple[Figure, list[tuple[Axes, str, list[str]]]]:
    """Make a figure with the panels of `panels_of`, COLUMNS in a row; return it, and (panel, title, methods)."""
    groups = panels_of(families)
    columns = min(len(groups), COLUMNS)
    rows = math.ceil(len(groups) / columns)
    figure, panels = new_panels(columns, 6.4 if columns == 1 else 3.7 * columns, 4.2 * rows, rows=rows)
    for axes in panels[len(groups) :]:
        axes.remove()
    return figure, [(axes, *group) for axes, group in zip(panels, groups, strict=False)]


def new_panels(
    count: int, width: float, height: float, rows: int = 1, share_x: Literal["none", "row"] = "none"
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `rows` rows of `count` panels that share their y axis.

    Args:
        width, height: size of the figure, in inches.
        share_x: "row" = the panels of a row share their x axis.
    """
    sns.set_theme(style="ticks", context="paper", font_scale=1.1)
    figure, panels = plt.subplots(
        rows, count, figsize=(width, height), sharex=share_x, sharey=True, squeeze=False
    )
    sns.despine(figure)
    return figure, list(panels.flat)


def label_all(figure: Figure, x: str, y: str, title: str) -> None:
    """Set the labels of all panels' axes, and the title: of the figure, or of its only panel."""
    if len(figure.axes) == 1:
        figure.axes[0].set(xlabel=x, ylabel=y)
        figure.axes[0].set_title(title, loc="left")
        return
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    figure.suptitle(title)
    figure.tight_layout()


def over_seeds(what: str, seeds: int) -> str:
    """Add the number of seeds to the label of an axis, if there are several."""
    return what + (f", mean ± std of {seeds} seeds" if seeds > 1 else "")


def in_percent(*axes: Any) -> None:
    """Show shares in percent on axes (`axes.xaxis`, ...), without the sign: the axis label has it."""
    for axis in axes:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}"))


def exit_ticks(axes: Axes, exits: int) -> None:
    """Set whole numbers as ticks of an axis of exits, the first exit (1) and the last included."""
    step = math.ceil(exits / 6)
    inner = range(step, exits - step + 1, step) if step > 1 else range(2, exits)
    axes.set_xticks([1, *inner, exits] if exits > 1 else [1])


def add_legends(panels: Sequence[Axes]) -> None:
    """Add a legend to the right of the only panel, or one in each panel, with the methods that no other panel has."""
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        shown = dict(zip(labels, handles, strict=True))
        if len(panels) == 1:
            axes.legend(
                list(shown.values()), list(shown), loc="center left", bbox_to_anchor=(1.01, 0.5), **HANDLES
            )
        else:
            own = {label: handle for label, handle in shown.items() if label not in EVERYWHERE}
            axes.legend(list(own.values()), list(own), loc="best", fontsize=7.5, **HANDLES)


def add_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """Add one legend to the right of all panels."""
    once = dict(_labelled(panels))
    figure.legend(list(once.values()), list(once), loc="center left", bbox_to_anchor=(1.0, 0.5), **HANDLES)


def _labelled(panels: Iterable[Axes]) -> Iterator[tuple[str, Any]]:
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        yield from zip(labels, handles, strict=True)


def save(figure: Figure, path: Path) -> None:
    """Save a figure as PNG at `path` and as PDF beside it, without dates, so that equal figures are equal files."""
    for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        with atomic(path.with_suffix(f".{kind}")) as scratch:
            figure.savefig(scratch, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
