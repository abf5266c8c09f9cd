"""The job that says what the pipeline itself cost."""

from __future__ import annotations

from dataclasses import dataclass

from ztw.jobs.job import Job
from ztw.reporting.overhead import pipeline_table
from ztw.reporting.tables import write_csv


@dataclass(frozen=True)
class ReportPipelineSettings:
    """The cores that the study was computed on."""

    cores: int


def report_pipeline(job: Job, settings: ReportPipelineSettings) -> None:
    """Write the table of what the study's jobs took."""
    write_csv(pipeline_table(job.layout.folder, settings.cores), job.layout.table("pipeline"))
