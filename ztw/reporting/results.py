"""What the jobs measured, as tidy tables: metrics, from MLflow or from files, and curves. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.errors import ZtwError, reason
from ztw.files import check_seal, read_json, sealed
from ztw.progress import Report
from ztw.reporting.mlflow_names import UNDELIVERED
from ztw.study.layout import Cell, Layout

IDENTITY = ["dataset", "arch", "seed", "method"]
# protocol, budget: "" where a metric has none, budget as the study writes it ("0.25", "1.0", "max"), or the
# allowed loss; exit: 1 to K, 0 where a metric is of none; value: NaN where a budget is infeasible
METRIC_COLUMNS = (*IDENTITY, "protocol", "budget", "exit", "metric", "value")
TYPES = dict.fromkeys(METRIC_COLUMNS, "str") | {"seed": "int64", "exit": "int64", "value": "float64"}
Metrics = pd.DataFrame


def results_of(
    layout: Layout, cells: Iterable[Cell], methods: Sequence[str], partial: bool = False
) -> list[tuple[Cell, str]]:
    """List every cell with every method, in the order of the tables.

    Args:
        layout: where their results are.
        cells: of the study.
        methods: of the study.
        partial: leave out a method where a cell has no metrics of it. In a study that is published from several
            machines a mean can be over fewer seeds. In a run a missing file is an error.
    """
    pairs = product(cells, methods)
    return [(cell, method) for cell, method in pairs if not partial or layout.metrics(cell, method).is_file()]


def from_files(files: Iterable[Path | str]) -> Metrics:
    """The metrics that the `evaluate` jobs wrote, a row each, METRIC_COLUMNS."""
    return _frame(read_json(file) for file in files)


def read_curves(files: Iterable[Path | str]) -> pd.DataFrame:
    """The rows of several methods' curves, as the job `evaluate` wrote them; ZtwError for an altered file."""
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
    store_file: Path | str,
    runs_files: Iterable[Path | str],
    metrics_files: Sequence[Path | str],
    report: Report = print,
) -> Metrics:
    """The same, the values read from MLflow by the run ids that the `track_cell` jobs wrote, from no other run.

    metrics_files: which metrics there are, as in `from_files`; from there come the values of cells that are
    not delivered, and all of them when the server is away. Raises ZtwError when a run or a metric is
    missing or not what the file says, and when the store cannot be used.
    """
    from ztw.reporting.tracking import ServerAwayError, open_store, read_values

    store, delivered = read_json(store_file), {}
    for file in runs_files:
        facts = read_json(file)
        if UNDELIVERED not in facts:
            delivered[_cell(facts)] = file, facts["runs"]["method"]
    if not delivered:
        return from_files(metrics_files)

    def tracked(facts: dict[str, Any]) -> dict[str, Any]:
        if _cell(facts) not in delivered:
            return facts
        file, runs = delivered[_cell(facts)]
        if facts["method"] not in runs:
            raise ZtwError(f"{file}: names no run of {facts['method']}; delete it to log the cell again")
        values = read_values(client, store["uri"], runs[facts["method"]], facts["metrics"])
        for row, value in zip(facts["metrics"], values, strict=True):
            if not (row["value"] == value or (row["value"] is None and math.isnan(value))):
                raise ZtwError(
                    f"tracking: run {runs[facts['method']]} of {facts['method']} in {store['uri']!r} says"
                    f" {row['metric']} = {value}, the file of the cell {row['value']}; delete {file} to log it again"
                )
        return facts

    try:
        client, _ = open_store(store)
        return _frame(tracked(read_json(file)) for file in metrics_files)
    except ServerAwayError as away:
        report(f"{away}: the tables are made of the cells' files")
        return from_files(metrics_files)


def _cell(facts: dict[str, Any]) -> tuple[str, str, int]:
    return facts["dataset"], facts["arch"], facts["seed"]


def _frame(results: Iterable[dict[str, Any]]) -> Metrics:
    frames = [
        pd.DataFrame(facts["metrics"]).assign(**{key: facts[key] for key in IDENTITY}) for facts in results
    ]
    return pd.concat(frames, ignore_index=True)[list(METRIC_COLUMNS)].astype(TYPES)


def write_metrics(metrics: Metrics, path: Path | str) -> None:
    """Every metric of every method and seed: what the tables and figures are made of."""
    with sealed(path) as scratch:
        metrics.to_csv(scratch, index=False, lineterminator="\r\n")


def read_metrics(path: Path | str) -> Metrics:
    """Every metric, as `write_metrics` wrote them."""
    check_seal(path)
    return pd.read_csv(
        path,
        dtype=TYPES,
        keep_default_na=False,  # a method may be called NA
        na_values={"value": [""]},
    )
