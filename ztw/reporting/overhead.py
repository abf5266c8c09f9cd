"""What the pipeline itself costs: time and memory of every rule's jobs, and how much of it is not work."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.reporting.tables import write_csv

COLUMNS = ("rule", "jobs", "seconds", "working", "overhead", "largest_mb", "share_of_run")
BOOKKEEPING = ("start_tracking", "track_cell")  # MLflow: all of it is overhead
WORKED = re.compile(r"^worked ([\d.]+) s, from ([\d.]+)$", re.MULTILINE)
Row = dict[str, Any]


def read_job(benchmark: Path, log: Path) -> dict[str, float]:
    """One job: seconds and largest_mb by Snakemake's benchmark file, working and its start by the job's log."""
    with benchmark.open(newline="", encoding="utf-8") as stream:
        row = next(csv.DictReader(stream, delimiter="\t"))
    matches = WORKED.findall(log.read_text(encoding="utf-8", errors="replace"))
    if not matches:
        raise ZtwError(
            f"{log}: does not say how long the job worked; delete the job's output to run it again"
        )
    working, start = map(float, matches[-1])
    memory = float(row["max_rss"]) if row["max_rss"] not in ("-", "NA", "") else float("nan")
    return {"seconds": float(row["s"]), "working": working, "start": start, "largest_mb": memory}


def pipeline_table(study: Path | str, cores: int) -> list[Row]:
    """A row a rule, and one for all: seconds of its jobs, of which working, the rest processes and imports.

    share_of_run: overhead / (cores * the run's wall time); the row "all" adds what MLflow takes. Wall time is
    from the first job's start to the last one's end, so it means something for a run in one go only.
    """
    study = Path(study)
    jobs: dict[str, list[dict[str, float]]] = {}
    for benchmark in sorted((study / "benchmarks").rglob("*.tsv")):
        name = benchmark.relative_to(study / "benchmarks")
        log = (study / "logs" / name).with_suffix(".log")
        jobs.setdefault(name.parts[0].removesuffix(".tsv"), []).append(read_job(benchmark, log))
    every = [job for of_rule in jobs.values() for job in of_rule]
    ends = [job["start"] + job["working"] for job in every]
    wall = max(ends) - min(job["start"] + job["working"] - job["seconds"] for job in every)
    rows = [_row(rule, of_rule, cores * wall) for rule, of_rule in jobs.items()]
    whole = _row("all", every, cores * wall)
    tracking = sum(row["working"] for row in rows if row["rule"] in BOOKKEEPING)
    whole["overhead"] += tracking
    whole["share_of_run"] = whole["overhead"] / (cores * wall)
    return [*rows, whole]


def _row(rule: str, jobs: Iterable[dict[str, float]], available: float) -> Row:
    jobs = list(jobs)
    seconds, working = (sum(job[key] for job in jobs) for key in ("seconds", "working"))
    memory = max(job["largest_mb"] for job in jobs)
    overhead = seconds - working
    times = {"seconds": seconds, "working": working, "overhead": overhead}
    return {
        "rule": rule,
        "jobs": len(jobs),
        **times,
        "largest_mb": memory,
        "share_of_run": overhead / available,
    }


def write_pipeline(study: Path | str, cores: int, output: Path | str) -> None:
    """Write the table."""
    write_csv(pipeline_table(study, cores), output, COLUMNS)
