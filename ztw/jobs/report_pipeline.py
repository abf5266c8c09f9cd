"""Report the time and memory of the pipeline itself."""

from __future__ import annotations

from dataclasses import dataclass

from ztw.jobs.job import Job
from ztw.reporting.overhead import pipeline_table
from ztw.reporting.tables import write_csv


@dataclass(frozen=True)
class ReportPipelineSettings:
    """The number of cores of the run."""

    cores: int


def report_pipeline(job: Job, settings: ReportPipelineSettings) -> None:
    """Write the table of the time and memory of the study's jobs."""
    write_csv(pipeline_table(job.layout.folder, settings.cores), job.layout.table("pipeline"))
