"""Draw the figures of one data set and architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from ztw.catalogue.titles import title_of
from ztw.jobs.job import Job
from ztw.reporting.exit_figures import exit_accuracies, exit_shares, improvabilities
from ztw.reporting.figures import accuracy_against_cost
from ztw.reporting.finding import finding
from ztw.reporting.frontier_figure import draw_frontier
from ztw.reporting.frontier_table import read_frontier
from ztw.reporting.latency_table import read_latency
from ztw.reporting.main_figure import main_figure
from ztw.reporting.results import Metrics, read_curves, read_metrics, results_of
from ztw.reporting.style import known_first, save
from ztw.reporting.tables import read_differences
from ztw.reporting.time_figures import accuracy_against_all_times, accuracy_against_time
from ztw.study.layout import Cell, Layout
from ztw.study.settings import EvaluationSettings

SHARES = 3  # methods in the figure of exit shares


@dataclass(frozen=True)
class PlotFiguresSettings:
    """Settings of the figures of one data set and architecture.

    Args:
        families: method with early exits -> family, see `ztw.reporting.style.style`.
        headline: the methods of the main figures, see `Study.headline`.
        kinds: method -> kind, static networks included, see `ztw.study.kinds`.
        int8: methods in int8. They take part in time only, because their MACs are those of the float network.
        timed: whether latency was measured.
        frontier: whether the study has a table of the frontier.
    """

    dataset: str
    arch: str
    seeds: tuple[int, ...]
    families: dict[str, str]
    headline: tuple[str, ...]
    kinds: dict[str, str]
    int8: tuple[str, ...]
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
    title, protocol = title_of(*names), evaluation.protocols[0]
    metrics = _of(read_metrics(layout.table("metrics")), *names)
    cells = [Cell(*names, seed) for seed in settings.seeds]
    found = results_of(layout, cells, tuple(settings.kinds), partial)
    curves = read_curves(layout.curves(*of) for of in found)
    methods = {method for _, method in found}
    families = {name: of for name, of in settings.families.items() if name in methods}
    headline = [name for name in settings.headline if name in methods]
    said = _finding(layout, settings, curves, metrics)
    yield "accuracy_cost", main_figure(curves, metrics, families, headline, title, said, settings.int8)
    if set(settings.families) - set(settings.headline):
        yield "accuracy_cost_all", accuracy_against_cost(curves, metrics, families, title)
    yield "exit_accuracy", exit_accuracies(metrics, families, title)
    yield "hindsight_improvability", improvabilities(metrics, families, title)
    budgets, three = [str(budget) for budget in evaluation.budgets], known_first(headline)[:SHARES]
    yield "exit_shares", exit_shares(metrics, families, three, budgets, protocol, title)
    if settings.timed:
        times = read_latency(layout.table("latency"), *names)
        yield "accuracy_time", accuracy_against_time(times, families, headline, title)
        yield "accuracy_time_all", accuracy_against_all_times(times, families, title)
    if settings.frontier:
        yield "frontier", draw_frontier(_of(read_frontier(layout.table("frontier")), *names), title)


def _of(table: pd.DataFrame, dataset: str, arch: str) -> pd.DataFrame:
    return table[table["dataset"].eq(dataset) & table["arch"].eq(arch)]


def _finding(layout: Layout, settings: PlotFiguresSettings, curves: pd.DataFrame, metrics: Metrics) -> str:
    differences = _of(read_differences(layout.table("differences")), settings.dataset, settings.arch)
    kinds = {name: kind for name, kind in settings.kinds.items() if name not in settings.int8}
    return finding(curves, metrics, differences, settings.headline, kinds, settings.evaluation.budgets)
