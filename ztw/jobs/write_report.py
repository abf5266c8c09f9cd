"""Write the study's report, and the study's config, from which the report can be written again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from ztw.files import write_text
from ztw.jobs.job import Job
from ztw.reporting.report import write_report as write


@dataclass(frozen=True)
class WriteReportSettings:
    """The study's config without a password, and the comment at the start of its file."""

    config: dict[str, Any]
    heading: str


def write_report(job: Job, settings: WriteReportSettings) -> None:
    """Write config.yaml and report.html of a study."""
    keys = yaml.safe_dump(settings.config, sort_keys=False, allow_unicode=True, width=110)
    write_text(job.layout.config, f"{settings.heading}{keys}")
    write(job.layout.folder)
