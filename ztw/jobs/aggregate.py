"""Make the tables from the results of all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ztw.files import write_json
from ztw.jobs.job import Job
from ztw.reporting.devices import COLUMNS, device_rows, mixed
from ztw.reporting.latency_table import latency_table, left_out, write_latency
from ztw.reporting.mlflow_names import undelivered
from ztw.reporting.published import comparison_table, read_published
from ztw.reporting.readable import read_noise
from ztw.reporting.results import Metrics, from_files, from_runs, results_of, write_metrics
from ztw.reporting.tables import (
    accuracy_table,
    allowed_loss_table,
    per_exit_table,
    training_table,
    with_backbone,
    with_kinds,
    write_csv,
    write_tables,
)
from ztw.study.layout import PUBLISHED, Cell, Layout
from ztw.study.settings import EvaluationSettings


@dataclass(frozen=True)
class AggregateSettings:
    """Settings of the tables.

    Args:
        kinds: method -> kind, see `ztw.study.kinds`, in the order of the rows.
        cells: (data set, architecture, seed) of every cell.
        timed: cells with measured latency.
        tracked: whether to read metrics from MLflow.
    """

    kinds: dict[str, str]
    evaluation: EvaluationSettings
    cells: tuple[tuple[str, str, int], ...]
    timed: tuple[tuple[str, str, int], ...] = ()
    tracked: bool = False


def aggregate(job: Job, settings: AggregateSettings, partial: bool = False) -> None:
    """Write all tables of a study except `differences`, `frontier` and `pipeline`; partial: see `results_of`."""
    layout, cells = job.layout, [Cell(*names) for names in settings.cells]
    files = {layout.metrics(*of): of[0] for of in results_of(layout, cells, tuple(settings.kinds), partial)}
    if settings.tracked:
        metrics, lacking = from_runs(layout.store, list(files), job.report)
        for file, reason in lacking.items():  # makes the next call log the cell again
            write_json(layout.runs(files[file]), undelivered(files[file], reason))
    else:
        metrics = from_files(files)
    _write_all(layout, metrics, device_rows(list(files)), settings, partial)


def _write_all(
    layout: Layout,
    metrics: Metrics,
    devices: Sequence[Mapping[str, Any]],
    settings: AggregateSettings,
    partial: bool,
) -> None:
    """Write the tables.

    Args:
        devices: rows from `ztw.reporting.devices.device_rows`.
        partial: see `ztw.reporting.tables.accuracy_table`.
    """
    evaluation = settings.evaluation
    accuracies = accuracy_table(metrics, tuple(settings.kinds), evaluation, partial)
    compared = comparison_table(accuracies, read_published(PUBLISHED), evaluation.protocols)
    write_metrics(metrics, layout.table("metrics"))
    write_csv(pd.DataFrame(devices, columns=COLUMNS), layout.table("devices"))
    noise = read_noise(layout.table("differences"))
    shown = with_kinds(with_backbone(accuracies, metrics), settings.kinds)
    write_tables(
        shown,
        noise,
        mixed(devices),
        *(layout.table("accuracy_at_budget", kind) for kind in ("csv", "md", "tex")),
    )
    write_csv(per_exit_table(metrics), layout.table("per_exit"))
    write_csv(allowed_loss_table(metrics), layout.table("allowed_loss"))
    write_csv(training_table(metrics), layout.table("training"))
    layout.table("comparison").unlink(missing_ok=True)
    if len(compared):  # most studies have no published values
        write_csv(compared, layout.table("comparison"))
    if times := [layout.latency(Cell(*names)) for names in settings.timed]:
        write_latency(
            latency_table(times, metrics),
            left_out(times),
            layout.table("latency"),
            layout.table("latency", "md"),
        )
