"""The job that says what the pipeline itself cost."""

from __future__ import annotations

from pathlib import Path

from ztw.reporting.overhead import pipeline_table
from ztw.reporting.tables import write_csv


def report_pipeline(study: Path | str, cores: int, output: Path | str) -> None:
    """Write the table of the study in this folder, computed on so many cores."""
    write_csv(pipeline_table(study, cores), output)
