"""The job that says which differences between methods are more than noise."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ztw.evaluation.bootstrap import pairs_at_budgets
from ztw.files import atomic
from ztw.progress import Report
from ztw.reporting.differences import COLUMNS, Row
from ztw.tensors import read_tensors


def run_compare_methods(
    answers: Mapping[tuple[str, str, int, str], str],
    evaluation: Mapping[str, Any],
    output: Path | str,
    report: Report,
) -> None:
    """Compare every pair of methods on the same test samples, budget by budget.

    answers: (data set, architecture, seed, method) -> file of "<protocol>@<budget>" -> uint8 (N,).
    """
    rows: list[Row] = []
    for dataset, arch in dict.fromkeys(key[:2] for key in answers):
        report(f"{dataset}/{arch}")
        files = {key[2:]: read_tensors(file) for key, file in answers.items() if key[:2] == (dataset, arch)}
        for protocol in evaluation["protocols"]:
            correct: dict[Any, dict[str, dict[int, Any]]] = {}
            for budget in evaluation["budgets"]:
                methods = correct.setdefault(budget, {})
                for (seed, method), found in files.items():
                    if (name := f"{protocol}@{budget}") in found:
                        methods.setdefault(method, {})[seed] = found[name]
            named = {"dataset": dataset, "arch": arch, "protocol": protocol}
            rows += [{**named, **row, "seeds": len(row["seeds"])} for row in pairs_at_budgets(correct)]
    with atomic(output) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for row in rows:
            interval = {key: f"{row[key]:.6f}" for key in ("difference", "low", "high")}
            writer.writerow([{**row, **interval}[column] for column in COLUMNS])
