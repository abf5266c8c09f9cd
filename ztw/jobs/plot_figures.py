"""The job that draws the figures of one data set and architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ztw.progress import Report
from ztw.reporting.exit_figures import exit_accuracies, exit_shares, improvabilities
from ztw.reporting.figures import accuracy_against_cost, accuracy_against_time
from ztw.reporting.latency_table import read_latency
from ztw.reporting.results import read_curves, read_metrics
from ztw.reporting.style import save

if TYPE_CHECKING:  # only types: the wording of a key must not count as a change of what is drawn
    from ztw.study.settings import EvaluationSettings


@dataclass(frozen=True)
class FigureFiles:
    """What the figures are made of: the table of metrics, every method's curves, and of times if there is one."""

    metrics: str
    curves: Sequence[str]
    times: str | None


def plot_figures(
    names: tuple[str, str],
    families: Mapping[str, str],
    evaluation: EvaluationSettings,
    files: FigureFiles,
    stem: str,
    report: Report,
) -> None:
    """Draw them all; names: data set, architecture; families: of the methods with early exits; stem: of the files."""
    for name, figure in _figures(names, families, evaluation, files):
        report(name)
        save(figure, f"{stem}-{name}")


def _figures(
    names: tuple[str, str],
    families: Mapping[str, str],
    evaluation: EvaluationSettings,
    files: FigureFiles,
) -> Iterator[tuple[str, Figure]]:
    title, protocol = ", ".join(names), evaluation.protocols[0]
    metrics = read_metrics(files.metrics)
    metrics = metrics[metrics["dataset"].eq(names[0]) & metrics["arch"].eq(names[1])]
    curves = read_curves(files.curves)
    yield "accuracy_cost", accuracy_against_cost(curves, metrics, families, title)
    yield "exit_accuracy", exit_accuracies(metrics, families, title)
    yield "hindsight_improvability", improvabilities(metrics, families, title)
    budgets = [str(budget) for budget in evaluation.budgets]
    shares = exit_shares(metrics, list(families), budgets, protocol, f"{title}, thresholds: {protocol}")
    yield "exit_shares", shares
    if files.times:
        times = read_latency(files.times, *names)
        yield "accuracy_time", accuracy_against_time(times, families, title)
