"""The job that creates a study's MLflow store, once and alone."""

from __future__ import annotations

from pathlib import Path

from ztw.files import write_json
from ztw.progress import Report
from ztw.reporting.tracking import start_store


def start_tracking(tracking: str, study: str, output: Path | str, report: Report) -> None:
    """Create the store and the study's experiment; writes which they are into the study's folder."""
    write_json(output, start_store(tracking, study, Path(output).parent, report))
