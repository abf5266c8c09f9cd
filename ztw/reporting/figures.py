"""Figures of a study: readable in print and for colour-blind eyes; png and pdf of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ztw.evaluation.metrics import accuracy_at_budget
from ztw.exits.sweep import Curve
from ztw.files import atomic
from ztw.reporting.tables import budget_name

matplotlib.use("Agg")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
GRID = np.linspace(0.02, 2.0, 199)  # shares of the backbone's cost at which seeds are averaged

Result = Mapping[str, Any]


def style(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each method: never colour alone."""
    colours = sns.color_palette("colorblind")  # its own ten: more would repeat with their markers
    return {
        method: {
            "color": colours[index % len(colours)],
            # one step further each time the colours begin anew, so that no two methods look the same
            "marker": MARKERS[(index + index // len(colours)) % len(MARKERS)],
            "linestyle": DASHES[(index + index // len(colours)) % len(DASHES)],
        }
        for index, method in enumerate(methods)
    }


def save(figure: Figure, stem: Path | str) -> None:
    """Write STEM.png and STEM.pdf, without a date so that equal figures are equal files."""
    for kind, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        with atomic(f"{stem}.{kind}") as scratch:
            figure.savefig(scratch, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)
    plt.close(figure)


def _axes(title: str, width: float = 6.4, height: float = 4.2) -> tuple[Figure, Axes]:
    sns.set_theme(style="whitegrid", context="paper", font_scale=1.1)
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set_title(title)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _per_exit(results: Sequence[Result], name: str) -> np.ndarray:
    """(seeds, K) of a metric that the results hold for every exit."""
    values = []
    for result in results:
        metrics, exit = result["metrics"], 1
        row = []
        while f"exit_{exit}/{name}" in metrics:
            row.append(metrics[f"exit_{exit}/{name}"])
            exit += 1
        values.append(row)
    return np.array(values, dtype=float)


def _curve_of(rows: pd.DataFrame) -> Curve:
    def column(name: str) -> torch.Tensor:
        return torch.tensor(rows[name].to_numpy(), dtype=torch.float64)

    return Curve(column("parameter"), column("accuracy"), column("relative_cost"), torch.empty(len(rows), 0))


def _mean_curve(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cost, mean, std) of accuracy over seeds, at the shares of GRID that every seed reaches."""
    accuracies, largest = [], 0.0
    for _, seed_rows in rows.groupby("seed"):
        curve = _curve_of(seed_rows)
        accuracies.append(accuracy_at_budget(curve, GRID.tolist(), 1.0).numpy())
        largest = max(largest, float(curve.cost.max()))
    stacked = np.stack(accuracies)
    shown = ~np.isnan(stacked).any(0) & (largest + GRID[1] - GRID[0] >= GRID)
    spread = stacked.std(0, ddof=1) if len(stacked) > 1 else np.zeros_like(stacked[0])
    return GRID[shown], stacked.mean(0)[shown], spread[shown]


def accuracy_against_cost(
    curves: Mapping[str, pd.DataFrame], results: Mapping[str, Sequence[Result]], title: str
) -> Figure:
    """Accuracy against relative cost, a curve a method (mean over seeds, band = one standard deviation).

    curves: method -> rows of the test split of all seeds; results: method -> its metrics. Small
    hollow markers are the single exits, if all samples left there; the star is the backbone alone.
    """
    figure, axes = _axes(title)
    looks = style(list(curves))
    for method, rows in curves.items():
        look, name = looks[method], method
        patience = bool((rows["parameter"] % 1 == 0).all())  # t, not a threshold
        if patience:  # a rule with few parameters is a row of points, not a curve
            points = rows.groupby("parameter")[["relative_cost", "accuracy"]].mean()
            axes.plot(points["relative_cost"], points["accuracy"], label=name, markersize=5, **look)
        else:
            cost, mean, spread = _mean_curve(rows)
            axes.plot(cost, mean, label=name, markevery=12, markersize=5, **look)
            axes.fill_between(cost, mean - spread, mean + spread, color=look["color"], alpha=0.15, lw=0)
        exit_cost = _per_exit(results[method], "relative_cost").mean(0)
        exit_accuracy = _per_exit(results[method], "accuracy").mean(0)
        axes.plot(
            exit_cost, exit_accuracy, ls="", marker=look["marker"], ms=3.5, mfc="none", mec=look["color"]
        )
    base = [r["metrics"].get("backbone/accuracy") for rs in results.values() for r in rs]
    if None not in base:  # no IC set left the backbone as it was
        star: dict[str, Any] = {"marker": "*", "color": "black", "markersize": 13, "ls": "", "zorder": 5}
        axes.plot(1.0, np.mean(base), label="backbone alone", **star)
    axes.set_xlabel("mean cost of a sample / cost of the backbone (MACs)")
    axes.set_ylabel("test accuracy")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _legend(axes)
    return figure


def accuracy_against_time(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], title: str) -> Figure:
    """Accuracy against measured time relative to the backbone's, a panel a batch size, a curve a method.

    rows: of `ztw.latency.read_latency`; a point is a budget but "max", thresholds chosen on the validation split.
    """
    sns.set_theme(style="whitegrid", context="paper", font_scale=1.1)
    sizes = sorted({row["batch_size"] for row in rows})
    width = 4.2 * len(sizes)
    figure, panels = plt.subplots(1, len(sizes), figsize=(width, 4.2), sharey=True, squeeze=False)
    looks = style(methods)
    for axes, size in zip(panels[0], sizes, strict=True):
        here = [row for row in rows if row["batch_size"] == size]
        for method in methods:
            own = [
                (r["relative_time"], r["accuracy"])
                for r in here
                if r["method"] == method and r["budget"] != "max"
            ]
            if own:
                axes.plot(*zip(*own, strict=True), label=method, ms=5, lw=1.4, **looks[method])
        alone = [row for row in here if row["method"] not in methods]
        star = {"marker": "*", "color": "black", "markersize": 13, "ls": "", "zorder": 5}
        axes.plot(
            [r["relative_time"] for r in alone],
            [r["accuracy"] for r in alone],
            label="backbone alone",
            **star,
        )
        axes.set_title(f"batch size {size}")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[0][0].set_ylabel("test accuracy")
    figure.supxlabel("measured time / time of the backbone alone")
    figure.suptitle(f"{title}, {rows[0]['device']}, {rows[0]['precision']}")
    _legend(panels[0][-1])
    figure.tight_layout()
    return figure


def _by_exit(results: Mapping[str, Sequence[Result]], metric: str, title: str, ylabel: str) -> Figure:
    figure, axes = _axes(title)
    looks = style(list(results))
    values_of = {method: _per_exit(of_method, metric) for method, of_method in results.items()}
    shared: dict[bytes, list[str]] = {}  # methods that differ by their rule only share their exits
    for method, values in values_of.items():
        shared.setdefault(values.tobytes(), []).append(method)
    for methods in shared.values():
        values, look = values_of[methods[0]], looks[methods[0]]
        exits, mean = np.arange(1, values.shape[1] + 1), values.mean(0)
        axes.plot(exits, mean, label=", ".join(methods), markersize=5, **look)
        if len(values) > 1:
            spread = values.std(0, ddof=1)
            axes.fill_between(exits, mean - spread, mean + spread, color=look["color"], alpha=0.15, lw=0)
    axes.set_xlabel("exit")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _legend(axes)
    return figure


def exit_accuracies(results: Mapping[str, Sequence[Result]], title: str) -> Figure:
    """Accuracy of every exit if all samples left there; methods that share their exits share a line."""
    return _by_exit(results, "accuracy", title, "test accuracy at this exit")


def improvabilities(results: Mapping[str, Sequence[Result]], title: str) -> Figure:
    """Hindsight improvability of every exit; lower is better."""
    return _by_exit(results, "hindsight_improvability", title, "hindsight improvability (lower is better)")


def exit_shares(
    results: Mapping[str, Sequence[Result]], budgets: Sequence[float | str], protocol: str, title: str
) -> Figure:
    """Where samples exit: a stacked bar a method, a panel a budget."""
    sns.set_theme(style="white", context="paper", font_scale=1.1)
    figure, panels = plt.subplots(
        1,
        len(budgets),
        figsize=(2.6 * len(budgets) + 1, 0.38 * len(results) + 1.6),
        sharey=True,
        squeeze=False,
    )
    exits = max(_per_exit(rs, "accuracy").shape[1] for rs in results.values())
    colours = sns.color_palette("cividis", exits)
    names = list(results)
    for axes, budget in zip(panels[0], budgets, strict=True):
        for position, method in enumerate(names):
            shares = _exit_shares_at(results[method], protocol, budget)
            if shares is None:
                axes.text(0.5, position, "infeasible", ha="center", va="center", fontsize=8)
                continue
            lefts = np.concatenate([[0.0], shares.cumsum()[:-1]])
            own = [*colours[: len(shares) - 1], colours[-1]]  # the last is the backbone's, however many ICs
            axes.barh(position, shares, left=lefts, color=own, edgecolor="white", linewidth=0.5)
        axes.set_title(f"budget {budget_name(budget)}")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_yticks(range(len(names)), names)
    panels[0][0].invert_yaxis()
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours]
    labels = [*(f"exit {k}" for k in range(1, exits)), "backbone"]
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(title)
    figure.supxlabel("share of test samples that leave at each exit")
    figure.tight_layout()
    return figure


def _exit_shares_at(results: Sequence[Result], protocol: str, budget: float | str) -> np.ndarray | None:
    """Mean share (K,) over the seeds for which the budget is feasible; K: the method's own exits."""
    rows = []
    for result in results:
        metrics = result["metrics"]
        exits = sum(name.startswith("exit_") and name.endswith("/accuracy") for name in metrics)
        names = [f"{protocol}/exit_fraction_{k}_at_{budget}" for k in range(1, exits + 1)]
        if all(name in metrics for name in names):
            rows.append([metrics[name] for name in names])
    return np.mean(rows, axis=0) if rows else None


def cell_figures(
    curves: Mapping[str, pd.DataFrame],
    results: Mapping[str, Sequence[Result]],
    budgets: Sequence[float | str],
    protocol: str,
    cell: str,
) -> Iterator[tuple[str, Figure]]:
    """Every figure of one data set and architecture, with its name; curves and results: by method."""
    yield "accuracy_cost", accuracy_against_cost(curves, results, cell)
    yield "exit_accuracy", exit_accuracies(results, cell)
    yield "hindsight_improvability", improvabilities(results, cell)
    yield "exit_shares", exit_shares(results, budgets, protocol, f"{cell}, thresholds: {protocol}")
