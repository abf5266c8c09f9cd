"""Draw figures of single exits: accuracy, hindsight improvability, share of samples that leave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ztw.reporting.readable import budget_name
from ztw.reporting.results import Metrics
from ztw.reporting.style import (
    add_legends,
    draw_band,
    draw_faint,
    in_percent,
    label_all,
    new_panels,
    over_seeds,
    panels_of,
    style,
)

# With more exits, only some have a marker or are in the legend
MANY = 12


def exit_accuracies(metrics: Metrics, families: Mapping[str, str], title: str) -> Figure:
    """Draw the accuracy of every exit if all samples left there. Methods with the same exits share a line."""
    return _by_exit(metrics[metrics["metric"] == "accuracy"], families, title, "test accuracy\nat this exit")


def improvabilities(metrics: Metrics, families: Mapping[str, str], title: str) -> Figure:
    """Draw the hindsight improvability of every exit; lower is better."""
    own = metrics[metrics["metric"] == "hindsight_improvability"]
    return _by_exit(own, families, title, "hindsight improvability\n(lower is better)")


def _by_exit(metrics: Metrics, families: Mapping[str, str], title: str, what: str) -> Figure:
    """Draw a metric by exit; metrics: rows of one metric, families: see `style`."""
    own = metrics[metrics["exit"].gt(0) & metrics["protocol"].eq("")].sort_values(["seed", "exit"])
    rows_of = {method: own[own["method"] == method] for method in families}
    shared: dict[bytes, list[str]] = {}  # methods that differ only in the rule have the same exits
    for method, rows in rows_of.items():
        shared.setdefault(rows["value"].to_numpy().tobytes(), []).append(method)
    label = {first: ", ".join([first, *others]) for first, *others in shared.values()}
    groups = panels_of({first: families[first] for first in label})
    figure, panels = new_panels(len(groups), 6.4 if len(groups) == 1 else 3.6 * len(groups), 4.2)
    looks = style(families)
    many = own["exit"].max() > MANY
    measured = over_seeds(what, own[own["method"].isin(list(families))]["seed"].nunique())
    for axes, (family, shown) in zip(panels, groups, strict=True):
        for first in label:
            if first in shown:
                # No two methods have a marker at the same exit
                every = (list(shown).index(first), len(shown)) if many else None
                look = {"label": label[first], "markevery": every, **looks[first]}
                draw_band(axes, rows_of[first], "exit", "value", **look)
            else:
                draw_faint(axes, rows_of[first], "exit", "value")
        axes.set(title=family, xlabel="", ylabel=measured if axes is panels[0] else "")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        in_percent(axes.yaxis)
    label_all(figure, panels, "exit", title)
    add_legends(panels)
    return figure


def exit_shares(
    metrics: Metrics, methods: Sequence[str], budgets: Sequence[str], protocol: str, title: str
) -> Figure:
    """Draw the share of samples that leave at each exit: a stacked bar per method, a panel per budget.

    Shares are means over the seeds for which the budget is feasible.
    """
    figure, panels = new_panels(len(budgets), 2.6 * len(budgets) + 1, 0.38 * len(methods) + 1.6, grid=False)
    shares = metrics[metrics["metric"].eq("exit_fraction") & metrics["protocol"].eq(protocol)]
    means = shares.groupby(["budget", "method", "exit"])["value"].mean()
    colours = sns.color_palette("cividis", metrics["exit"].max())
    for axes, budget in zip(panels, budgets, strict=True):
        for position, method in enumerate(methods):
            own = means.loc[budget, method] if (budget, method) in means else means.iloc[:0]
            _stacked_bar(axes, position, own, colours)
        axes.set_title(f"budget {budget_name(budget)}")
        axes.set_xlim(0, 1)
        axes.set_yticks(range(len(methods)), methods)
        in_percent(axes.xaxis)
    panels[0].invert_yaxis()
    _exit_legend(figure, colours)
    figure.suptitle(title)
    figure.supxlabel("share of test samples that leave at each exit")
    figure.tight_layout()
    return figure


def _stacked_bar(axes: Axes, position: int, shares: pd.Series, colours: Sequence) -> None:
    """Draw the shares of a method's exits; no shares = infeasible."""
    if not len(shares):
        axes.text(0.5, position, "infeasible", ha="center", va="center", fontsize=8)
        return
    lefts = np.concatenate([[0.0], shares.cumsum()[:-1]])
    own = [*colours[: len(shares) - 1], colours[-1]]  # the last exit, the backbone's, has the last colour
    # With many exits, edges would cover small shares
    edges = 0.5 if len(colours) <= MANY else 0.0
    axes.barh(position, shares, left=lefts, color=own, edgecolor="white", linewidth=edges)


def _exit_legend(figure: Figure, colours: Sequence) -> None:
    named = {f"exit {k}": colour for k, colour in enumerate(colours[:-1], 1)}
    if len(colours) > MANY:
        named = dict(list(named.items())[:: math.ceil(len(colours) / MANY)])
    named["backbone"] = colours[-1]
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in named.values()]
    figure.legend(handles, list(named), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
