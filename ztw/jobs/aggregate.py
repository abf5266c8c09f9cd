"""The job that makes the tables from all cells' results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ztw.progress import Report
from ztw.reporting.devices import COLUMNS, device_rows, mixed
from ztw.reporting.differences import read_noise
from ztw.reporting.latency_table import latency_table, left_out, write_latency
from ztw.reporting.published import comparison_table, read_published
from ztw.reporting.results import Metrics, from_files, from_runs, write_metrics
from ztw.reporting.tables import (
    accuracy_table,
    allowed_loss_table,
    per_exit_table,
    with_backbone,
    write_csv,
    write_tables,
)

if TYPE_CHECKING:  # only a type: the wording of a key must not count as a change of what is computed
    from ztw.study.settings import EvaluationSettings


@dataclass(frozen=True)
class ResultFiles:
    """What the tables are made of; store, runs: MLflow's, whose values count where there is a store."""

    metrics: Sequence[str]
    differences: str
    times: Sequence[str]
    published: Path | str
    store: str | None = None
    runs: Sequence[str] = ()


@dataclass(frozen=True)
class TableFiles:
    """The tables to write; csv, md, tex: the accuracy table; times: latency's csv and md, if anything was timed."""

    metrics: str
    csv: str
    md: str
    tex: str
    per_exit: str
    allowed_loss: str
    comparison: str
    devices: str
    times: Sequence[str] = ()


def aggregate(
    methods: Sequence[str],
    evaluation: EvaluationSettings,
    files: ResultFiles,
    tables: TableFiles,
    report: Report,
) -> None:
    """Write every table of a study but those of differences and of the pipeline."""
    if files.store is None:
        metrics = from_files(files.metrics)
    else:
        metrics = from_runs(files.store, files.runs, files.metrics, report)
    write_all(metrics, device_rows(files.metrics), methods, evaluation, files, tables)


def write_all(
    metrics: Metrics,
    devices: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    evaluation: EvaluationSettings,
    files: ResultFiles,
    tables: TableFiles,
    partial: bool = False,
) -> None:
    """Write them from the metrics, and from what all was computed on (see `ztw.reporting.devices`).

    partial: see `ztw.reporting.tables.accuracy_table`.
    """
    accuracies = accuracy_table(metrics, methods, evaluation, partial)
    compared = comparison_table(accuracies, read_published(files.published), evaluation.protocols)
    write_metrics(metrics, tables.metrics)
    write_csv(pd.DataFrame(devices, columns=COLUMNS), tables.devices)
    noise = read_noise(files.differences)
    shown = with_backbone(accuracies, metrics)
    write_tables(shown, noise, mixed(devices), tables.csv, tables.md, tables.tex)
    write_csv(per_exit_table(metrics), tables.per_exit)
    write_csv(allowed_loss_table(metrics), tables.allowed_loss)
    write_csv(compared, tables.comparison)
    if tables.times:
        write_latency(latency_table(files.times, metrics), left_out(files.times), *tables.times)
