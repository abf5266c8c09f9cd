"""The job that says which differences between methods are more than noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from ztw.evaluation.bootstrap import pairs_at_budgets
from ztw.progress import Report
from ztw.reporting.differences import COLUMNS
from ztw.reporting.tables import write_csv
from ztw.tensors import read_tensors

if TYPE_CHECKING:  # only types: the wording of a key must not count as a change of what is computed
    from ztw.study.settings import Cell, EvaluationSettings


def compare_methods(
    answers: Mapping[tuple[Cell, str], str],
    evaluation: EvaluationSettings,
    output: Path | str,
    report: Report,
) -> None:
    """Compare every pair of methods on the same test samples, budget by budget.

    answers: (cell, method) -> file of "<protocol>@<budget>" -> uint8 (N,).
    """
    rows: list[dict[str, Any]] = []
    for dataset, arch in dict.fromkeys((cell.dataset, cell.arch) for cell, _ in answers):
        report(f"{dataset}/{arch}")
        files = {
            (cell.seed, method): read_tensors(file)
            for (cell, method), file in answers.items()
            if (cell.dataset, cell.arch) == (dataset, arch)
        }
        for protocol in evaluation.protocols:
            named = {"dataset": dataset, "arch": arch, "protocol": protocol}
            found = pairs_at_budgets(_correct(files, protocol, evaluation))
            rows += [{**named, **row, "seeds": len(row["seeds"])} for row in found]
    write_csv(pd.DataFrame(rows, columns=COLUMNS), output)


def _correct(
    files: Mapping[tuple[int, str], Mapping[str, Tensor]], protocol: str, evaluation: EvaluationSettings
) -> dict[str, dict[str, dict[int, Tensor]]]:
    """budget -> method -> seed -> which samples are right, where the budget is feasible."""
    correct: dict[str, dict[str, dict[int, Tensor]]] = {}
    for budget in map(str, evaluation.budgets):
        methods = correct.setdefault(budget, {})
        for (seed, method), found in files.items():
            if (name := f"{protocol}@{budget}") in found:
                methods.setdefault(method, {})[seed] = found[name]
    return correct
