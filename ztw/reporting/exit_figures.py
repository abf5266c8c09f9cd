"""Draw figures of single exits: accuracy, hindsight improvability, share of samples that have left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ztw.reporting.drawing import draw_band, draw_faint
from ztw.reporting.readable import budget_name
from ztw.reporting.results import Metrics
from ztw.reporting.style import (
    COLUMNS,
    add_legend,
    add_legends,
    exit_ticks,
    in_percent,
    label_all,
    new_panels,
    over_seeds,
    panels_by_family,
    style,
)

MANY = 12  # with more exits, only some have a marker
MARKS = 9  # markers of a line of shares, about


def exit_accuracies(metrics: Metrics, families: Mapping[str, str], title: str) -> Figure:
    """Draw the accuracy of every exit if all samples left there. Methods with the same exits share a line."""
    return _by_exit(
        metrics[metrics["metric"] == "accuracy"], families, title, "test accuracy (%)\nat this exit"
    )


def improvabilities(metrics: Metrics, families: Mapping[str, str], title: str) -> Figure:
    """Draw the hindsight improvability of every exit; lower is better."""
    own = metrics[metrics["metric"] == "hindsight_improvability"]
    return _by_exit(own, families, title, "hindsight improvability (%)\n(lower is better)")


def _by_exit(metrics: Metrics, families: Mapping[str, str], title: str, what: str) -> Figure:
    """Draw a metric by exit; metrics: rows of one metric, families: see `style`."""
    own = metrics[metrics["exit"].gt(0) & metrics["protocol"].eq("")].sort_values(["seed", "exit"])
    rows_of = {method: own[own["method"] == method] for method in families}
    shared: dict[bytes, list[str]] = {}  # methods that differ only in the rule have the same exits
    for method, rows in rows_of.items():
        shared.setdefault(rows["value"].to_numpy().tobytes(), []).append(method)
    label = {first: ", ".join([first, *others]) for first, *others in shared.values()}
    figure, groups = panels_by_family({first: families[first] for first in label})
    looks = style(families)
    many = own["exit"].max() > MANY
    seeds = own[own["method"].isin(list(families))]["seed"].nunique()
    for axes, family, shown in groups:
        for first in label:
            if first in shown:
                # No two methods have a marker at the same exit
                every = (list(shown).index(first), len(shown)) if many else None
                look = {"label": label[first], "markevery": every, **looks[first]}
                draw_band(axes, rows_of[first], "exit", "value", **look)
            else:
                draw_faint(axes, rows_of[first], "exit", "value")
        axes.set(xlabel="", ylabel="")
        axes.set_title(family, loc="left", fontsize="medium")
        exit_ticks(axes, int(own["exit"].max()))
        in_percent(axes.yaxis)
    label_all(figure, "exit", over_seeds(what, seeds), title)
    add_legends(figure.axes)
    return figure


def exit_shares(
    metrics: Metrics,
    families: Mapping[str, str],
    methods: Sequence[str],
    budgets: Sequence[str],
    protocol: str,
    title: str,
) -> Figure:
    """Draw the share of samples that have left by each exit: a line per method, a panel per feasible budget.

    Shares are means over the seeds for which the budget is feasible.

    Args:
        families: see `style`.
        methods: the methods to draw.
    """
    own = metrics["method"].isin(methods) & metrics["protocol"].eq(protocol)
    shares = metrics[metrics["metric"].eq("exit_fraction") & own].dropna(subset="value")
    means = shares.groupby(["budget", "method", "exit"])["value"].mean()
    feasible = [budget for budget in budgets if shares["budget"].eq(budget).any()]
    columns = min(COLUMNS, max(1, len(feasible)))
    rows = max(1, -(-len(feasible) // columns))
    figure, panels = new_panels(columns, max(4.0, 2.4 * columns), 2.2 * rows + 0.6, rows=rows)
    for axes in panels[max(1, len(feasible)) :]:
        axes.remove()
    panels, looks = panels[: max(1, len(feasible))], style(families)
    for axes, budget in zip(panels, feasible, strict=False):
        for method in methods:
            if (budget, method) in means:
                _cumulative(axes, means.loc[budget, method], label=method, **looks[method])
        axes.set_title(f"budget {budget_name(budget)}", loc="left")
    for axes in panels:
        exit_ticks(axes, int(shares["exit"].max()) if len(shares) else 1)
        axes.set(xlabel="exit", ylim=(0, 1.03))
        in_percent(axes.yaxis)
    figure.supylabel("test samples that have left (%)", fontsize="medium")
    figure.suptitle(title)
    figure.tight_layout()
    add_legend(figure, panels)
    return figure


def _cumulative(axes: Axes, shares: pd.Series, **look: Any) -> None:
    """Draw the share that has left by each exit; the marks of a long line stand apart."""
    every = max(1, len(shares) // MARKS)
    axes.plot(shares.index, shares.cumsum(), ms=4, lw=1.6, markevery=every, drawstyle="steps-post", **look)
