"""Draw the figures of one data set and architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from ztw.jobs.job import Job
from ztw.reporting.exit_figures import exit_accuracies, exit_shares, improvabilities
from ztw.reporting.figures import accuracy_against_cost, accuracy_against_time
from ztw.reporting.frontier_figure import draw_frontier
from ztw.reporting.frontier_table import read_frontier
from ztw.reporting.latency_table import read_latency
from ztw.reporting.results import read_curves, read_metrics, results_of
from ztw.reporting.style import save
from ztw.study.layout import Cell, Layout
from ztw.study.settings import EvaluationSettings


@dataclass(frozen=True)
class PlotFiguresSettings:
    """Settings of the figures of one data set and architecture.

    Args:
        families: method with early exits -> family, see `ztw.reporting.style.style`.
        methods: all methods, static networks included.
        timed: whether latency was measured.
        frontier: whether the study has a table of the frontier.
    """

    dataset: str
    arch: str
    seeds: tuple[int, ...]
    families: dict[str, str]
    methods: tuple[str, ...]
    evaluation: EvaluationSettings
    timed: bool
    frontier: bool = False


def plot_figures(job: Job, title: str, settings: PlotFiguresSettings, partial: bool = False) -> None:
    """Draw every figure of one data set and architecture.

    Args:
        title: the first part of the file names.
        partial: see `ztw.reporting.results.results_of`.
    """
    for name, figure in _figures(job.layout, settings, partial):
        job.report(name)
        save(figure, job.layout.figure(title, name))


def _figures(layout: Layout, settings: PlotFiguresSettings, partial: bool) -> Iterator[tuple[str, Figure]]:
    names, evaluation = (settings.dataset, settings.arch), settings.evaluation
    title, protocol = ", ".join(names), evaluation.protocols[0]
    metrics = read_metrics(layout.table("metrics"))
    metrics = metrics[metrics["dataset"].eq(names[0]) & metrics["arch"].eq(names[1])]
    found = results_of(layout, [Cell(*names, seed) for seed in settings.seeds], settings.methods, partial)
    curves = read_curves(layout.curves(*of) for of in found)
    families = {name: of for name, of in settings.families.items() if name in {method for _, method in found}}
    yield "accuracy_cost", accuracy_against_cost(curves, metrics, families, title)
    yield "exit_accuracy", exit_accuracies(metrics, families, title)
    yield "hindsight_improvability", improvabilities(metrics, families, title)
    budgets = [str(budget) for budget in evaluation.budgets]
    shares = exit_shares(metrics, list(families), budgets, protocol, f"{title}, thresholds: {protocol}")
    yield "exit_shares", shares
    if settings.timed:
        times = read_latency(layout.table("latency"), *names)
        yield "accuracy_time", accuracy_against_time(times, families, title)
    if settings.frontier:
        table = read_frontier(layout.table("frontier"))
        table = table[table["dataset"].eq(names[0]) & table["arch"].eq(names[1])]
        yield "frontier", draw_frontier(table, title)
