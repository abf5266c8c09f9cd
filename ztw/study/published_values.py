"""Find out whether a study has results with published values, before anything runs."""

from __future__ import annotations

import csv
from pathlib import Path

from ztw.study.settings import Study


def has_published(path: Path, study: Study) -> bool:
    """Return whether a file of published accuracies has a value for a method of the study.

    A file that cannot be read counts, so that the job which reads it names the error.
    """
    budgets = {str(float(b)) if b != "max" else "max" for b in study.evaluation.budgets}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return any(
                (row["dataset"], row["arch"]) in study.cells
                and row["method"] in study.methods
                and (row["budget"] if row["budget"] == "max" else str(float(row["budget"]))) in budgets
                for row in csv.DictReader(stream)
            )
    except (OSError, ValueError, KeyError, TypeError):
        return True
