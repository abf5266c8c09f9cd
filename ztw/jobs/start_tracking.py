"""Create a study's MLflow store, before parallel jobs use it."""

from __future__ import annotations

from dataclasses import dataclass

from ztw.files import write_json
from ztw.jobs.job import Job
from ztw.reporting.mlflow_view import experiment_tags
from ztw.reporting.tracking import start_store
from ztw.study.settings import EvaluationSettings


@dataclass(frozen=True)
class StartTrackingSettings:
    """Settings of the store.

    Args:
        tracking: the study's key, without a password.
        command: makes the study again.
        timed: whether latency is measured.
    """

    tracking: str
    command: str
    evaluation: EvaluationSettings
    timed: bool


def start_tracking(job: Job, settings: StartTrackingSettings) -> None:
    """Create the store and the study's experiment, and write their names to the study's folder."""
    folder, budgets = job.layout.folder, list(map(str, settings.evaluation.budgets))
    tags = experiment_tags(folder.name, settings.command, budgets, settings.timed)
    store = start_store(settings.tracking, folder.name, folder, job.report, tags)
    write_json(job.layout.store, store)
