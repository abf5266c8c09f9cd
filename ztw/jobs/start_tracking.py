"""Create a study's MLflow store, before parallel jobs use it."""

from __future__ import annotations

from dataclasses import dataclass

from ztw.files import write_json
from ztw.jobs.job import Job
from ztw.reporting.tracking import start_store


@dataclass(frozen=True)
class StartTrackingSettings:
    """The study's key `tracking`, without a password."""

    tracking: str


def start_tracking(job: Job, settings: StartTrackingSettings) -> None:
    """Create the store and the study's experiment, and write their names to the study's folder."""
    folder = job.layout.folder
    write_json(job.layout.store, start_store(settings.tracking, folder.name, folder, job.report))
