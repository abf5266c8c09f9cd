"""Define the input that all jobs of the workflow get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ztw.progress import Report
from ztw.study.layout import Layout


@dataclass(frozen=True)
class Job:
    """Paths and progress of a job.

    Args:
        report: called with lines of progress.
        params: settings, plugins and code digest; Snakemake runs the job again if one changes.
        inputs: the files that the job reads.
    """

    layout: Layout
    report: Report = lambda line: None
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Path] = ()
