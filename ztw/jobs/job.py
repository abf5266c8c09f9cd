"""What every job of the workflow gets beside its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ztw.progress import Report
from ztw.study.layout import Layout


@dataclass(frozen=True)
class Job:
    """Where a job reads and writes, and what it reports to.

    Args:
        layout: the files of its study.
        report: gets lines of progress.
        params: its settings, plugins and code digest as Snakemake compares them: a change of one runs it again.
        inputs: files that it reads; another content is another result.
    """

    layout: Layout
    report: Report = lambda line: None
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[Path] = ()
