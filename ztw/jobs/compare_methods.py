"""Test which differences between methods exceed noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from ztw.evaluation.bootstrap import pairs_at_budgets
from ztw.evaluation.correct import read_correct
from ztw.jobs.job import Job
from ztw.reporting.readable import DIFFERENCES
from ztw.reporting.results import results_of
from ztw.reporting.tables import write_csv
from ztw.study.layout import Cell
from ztw.study.settings import EvaluationSettings


@dataclass(frozen=True)
class CompareMethodsSettings:
    """The compared methods, their cells (data set, architecture, seed) and budgets."""

    evaluation: EvaluationSettings
    methods: tuple[str, ...]
    cells: tuple[tuple[str, str, int], ...]


def compare_methods(job: Job, settings: CompareMethodsSettings, partial: bool = False) -> None:
    """Compare every pair of methods on the same test samples at every budget; partial: see `results_of`."""
    rows: list[dict[str, Any]] = []
    cells = [Cell(*names) for names in settings.cells]
    for dataset, arch in dict.fromkeys((cell.dataset, cell.arch) for cell in cells):
        job.report(f"{dataset}/{arch}")
        correct = {
            (cell.seed, method): read_correct(job.layout.correct(cell, method))
            for cell, method in results_of(job.layout, cells, settings.methods, partial)
            if (cell.dataset, cell.arch) == (dataset, arch)
        }
        for protocol in settings.evaluation.protocols:
            named = {"dataset": dataset, "arch": arch, "protocol": protocol}
            found = pairs_at_budgets(_correct(correct, protocol, settings.evaluation))
            rows += [{**named, **row, "seeds": len(row["seeds"])} for row in found]
    write_csv(pd.DataFrame(rows, columns=DIFFERENCES), job.layout.table("differences"))


def _correct(
    files: Mapping[tuple[int, str], Mapping[str, Tensor]], protocol: str, evaluation: EvaluationSettings
) -> dict[str, dict[str, dict[int, Tensor]]]:
    """Return budget -> method -> seed -> correct samples, for feasible budgets."""
    correct: dict[str, dict[str, dict[int, Tensor]]] = {}
    for budget in map(str, evaluation.budgets):
        methods = correct.setdefault(budget, {})
        for (seed, method), found in files.items():
            if (name := f"{protocol}@{budget}") in found:
                methods.setdefault(method, {})[seed] = found[name]
    return correct
