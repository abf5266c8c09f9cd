"""Read the results of jobs as tidy tables: metrics, from MLflow or from files, and curves. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.errors import ZtwError, reason
from ztw.files import check_seal, read_json, sealed
from ztw.progress import Note, Report
from ztw.study.layout import Cell, Layout

IDENTITY = ["dataset", "arch", "seed", "method"]
# protocol: "" = none. budget: a budget of the study ("0.25", "1.0", "max"), an allowed loss, or "" = none.
# exit: 1 to K, 0 = none. value: NaN if the budget is infeasible.
METRIC_COLUMNS = (*IDENTITY, "protocol", "budget", "exit", "metric", "value")
TYPES = dict.fromkeys(METRIC_COLUMNS, "str") | {"seed": "int64", "exit": "int64", "value": "float64"}
Metrics = pd.DataFrame


def results_of(
    layout: Layout, cells: Iterable[Cell], methods: Sequence[str], partial: bool = False
) -> list[tuple[Cell, str]]:
    """List every cell with every method, in the order of the tables.

    Args:
        partial: leave out methods of a cell without metrics, so that means are over fewer seeds. For studies published
            from several machines; in a run a missing file is an error.
    """
    pairs = product(cells, methods)
    return [(cell, method) for cell, method in pairs if not partial or layout.metrics(cell, method).is_file()]


def from_files(files: Iterable[Path | str]) -> Metrics:
    """Read the metrics files of the `evaluate` jobs: one row per metric, with METRIC_COLUMNS."""
    return _frame(read_json(file) for file in files)


def read_curves(files: Iterable[Path]) -> pd.DataFrame:
    """Read the curves of several methods into one table; raises ZtwError for an altered or unreadable file."""
    files = list(files)
    for file in files:
        check_seal(file)
    return pd.concat([_read_parquet(file) for file in files])


def _read_parquet(file: Path | str) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ZtwError(f"{file}: cannot be read ({reason(error, file)})") from error


def from_runs(
    store_file: Path, files: Sequence[Path], report: Report = print
) -> tuple[Metrics, dict[Path, str]]:
    """Read the metrics from MLflow: each run has a copy of a metrics file.

    If a copy is missing or altered, its file is read instead. If the server is away, all files are read.

    Args:
        store_file: the file of the job `start_tracking`.
        files: the metrics files of the `evaluate` jobs.
        report: called if MLflow lacks copies or the server is away.

    Returns:
        The metrics, one row each, with METRIC_COLUMNS; and file -> what is wrong with its copy.
    """
    from ztw.reporting.tracking import ServerAwayError, read_copies

    try:
        copies, lacking = read_copies(read_json(store_file), files, report)
    except ServerAwayError as away:
        report(f"{away}: the tables are made from the cells' files")
        return from_files(files), {}
    if lacking:
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        report(
            Note(
                f"{next(iter(lacking.values()))}{more}: the tables use the file; the next call logs it again"
            )
        )
    return _frame(copies[file] if file in copies else read_json(file) for file in files), lacking


def _frame(results: Iterable[dict[str, Any]]) -> Metrics:
    frames = [
        pd.DataFrame(content["metrics"]).assign(**{key: content[key] for key in IDENTITY})
        for content in results
    ]
    return pd.concat(frames, ignore_index=True)[list(METRIC_COLUMNS)].astype(TYPES)


def write_metrics(metrics: Metrics, path: Path | str) -> None:
    """Write all metrics of a study to one csv, from which the figures are drawn."""
    with sealed(path) as scratch:
        metrics.to_csv(scratch, index=False, lineterminator="\r\n")


def read_metrics(path: Path | str) -> Metrics:
    """Read the csv of `write_metrics`."""
    check_seal(path)
    return pd.read_csv(
        path,
        dtype=TYPES,
        keep_default_na=False,  # a method may be called NA
        na_values={"value": [""]},
    )
