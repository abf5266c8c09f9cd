"""The table of measured times, with accuracy and cost beside them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ztw.evaluation.timing import BACKBONE
from ztw.files import read_json, write_text
from ztw.reporting.tables import budget_name, write_csv

COLUMNS = (
    "dataset",
    "arch",
    "method",
    "budget",
    "batch_size",
    "median_ms",
    "p95_ms",
    "images_per_s",
    "relative_time",
    "accuracy",
    "relative_cost",
    "device",
    "precision",
    "threads",
)
Row = dict[str, Any]


def latency_table(files: Iterable[str], results: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Measured times with accuracy and cost of the same seed's test split beside them.

    files: of `run_measure_latency`; results: of the methods, see `ztw.results`. relative_time: a
    batch's time as a share of the backbone's for the same batch.
    """
    metrics: dict[tuple, Mapping[str, float]] = {
        (r["dataset"], r["arch"], int(r["seed"]), r["method"]): r["metrics"] for r in results
    }
    table = []
    for file in files:
        facts = read_json(file)
        alone = {row["batch_size"]: row["images_per_s"] for row in facts["rows"] if row["method"] == BACKBONE}
        for row in facts["rows"]:
            key = (facts["dataset"], facts["arch"], facts["seed"], row["method"])
            known = metrics.get(key, {})
            shown = {
                name: known.get(f"held-out/{name}_at_{row['budget']}", float("nan"))
                for name in ("accuracy", "relative_cost")
            }
            if row["method"] == BACKBONE:
                own = next((m for k, m in metrics.items() if k[:3] == key[:3]), {})
                shown = {"accuracy": own.get("backbone/accuracy", float("nan")), "relative_cost": 1.0}
            budget = "-" if row["budget"] is None else row["budget"]
            relative = alone[row["batch_size"]] / row["images_per_s"]
            named = {"dataset": facts["dataset"], "arch": facts["arch"]}
            table.append({**named, **row, "budget": budget, "relative_time": relative, **shown})
    return table


def read_latency(path: Path | str, dataset: str, arch: str) -> list[Row]:
    """The rows of one data set and architecture, as `write_latency` wrote them."""
    numbers = ("median_ms", "p95_ms", "images_per_s", "relative_time", "accuracy", "relative_cost")
    with Path(path).open(newline="", encoding="utf-8") as stream:
        rows: list[Row] = [r for r in csv.DictReader(stream) if (r["dataset"], r["arch"]) == (dataset, arch)]
    for row in rows:
        row |= {name: float("nan") if row[name] == "-" else float(row[name]) for name in numbers}
        row["batch_size"] = int(row["batch_size"])
    return rows


def write_latency(rows: Sequence[Row], csv_path: str, md_path: str) -> None:
    """The long table, and a readable one: a block for each cell and batch size."""
    write_csv(rows, csv_path, COLUMNS)
    blocks: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        blocks.setdefault((row["dataset"], row["arch"], row["batch_size"]), []).append(row)
    lines = []
    for (dataset, arch, size), group in blocks.items():
        where = f"{group[0]['device']}, {group[0]['precision']}, {group[0]['threads']} threads"
        lines += [f"**{dataset}, {arch}: measured on {where}, batch size {size}**\n"]
        lines += ["| method | budget | accuracy | MACs | time | median (ms) | 95 % (ms) | images/s |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
        for row in group:
            budget = "" if row["budget"] == "-" else budget_name(row["budget"])
            lines.append(
                f"| {row['method']} | {budget} | {100 * row['accuracy']:.1f} % | {row['relative_cost']:.0%}"
                f" | {row['relative_time']:.0%} | {row['median_ms']:.2f} | {row['p95_ms']:.2f}"
                f" | {row['images_per_s']:.0f} |"
            )
        lines.append("")
    write_text(md_path, "\n".join(lines))
