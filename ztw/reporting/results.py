"""The methods' metrics, from MLflow or from the jobs' files, and as one tidy table. Imports no torch."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.files import atomic, read_json

# {"dataset", "arch", "seed", "method", "metrics": {name: value, NaN = infeasible}}
Result = dict[str, Any]
COLUMNS = ("dataset", "arch", "seed", "method", "metric", "value")


def from_files(files: Iterable[str]) -> list[Result]:
    """The results the `evaluate` jobs wrote."""
    results = []
    for file in files:
        facts = read_json(file)
        metrics = {name: math.nan if value is None else value for name, value in facts["metrics"].items()}
        results.append({**{key: facts[key] for key in COLUMNS[:4]}, "metrics": metrics})
    return results


def from_runs(store_file: str, runs_files: Iterable[str], methods: Sequence[str]) -> list[Result]:
    """The same, read from MLflow by the run ids that the `track_cell` jobs wrote, from no other run.

    Raises ZtwError when a run is missing or the store cannot be reached.
    """
    from ztw.reporting.tracking import read_metrics

    store, results = read_json(store_file), []
    for file in runs_files:
        cell = read_json(file)
        for method in methods:
            if method not in cell["runs"]["method"]:
                raise ZtwError(f"{file}: names no run of {method}; delete it to log the cell again")
            metrics = read_metrics(store, cell["runs"]["method"][method])
            results.append({**{key: cell[key] for key in COLUMNS[:3]}, "method": method, "metrics": metrics})
    return results


def write_metrics(results: Iterable[Result], path: Path | str) -> None:
    """Every metric of every method and seed, a row each: what the tables and figures are made of."""
    with atomic(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for result in results:
            for name, value in sorted(result["metrics"].items()):
                writer.writerow([*(result[key] for key in COLUMNS[:4]), name, repr(float(value))])


def read_metrics(path: Path | str, dataset: str, arch: str) -> dict[str, list[Result]]:
    """method -> results (one a seed) of one data set and architecture, as `write_metrics` wrote them."""
    found: dict[str, dict[str, Result]] = {}
    with Path(path).open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if (row["dataset"], row["arch"]) != (dataset, arch):
                continue
            result = found.setdefault(row["method"], {}).setdefault(row["seed"], {"metrics": {}})
            result["metrics"][row["metric"]] = float(row["value"])
    return {method: list(of_seed.values()) for method, of_seed in found.items()}
