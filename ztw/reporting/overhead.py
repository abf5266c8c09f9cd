"""Compute the cost of the pipeline itself: time and memory of every rule's jobs, and the share of overhead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.errors import ZtwError

COLUMNS = ["rule", "jobs", "seconds", "working", "overhead", "largest_mb", "share_of_run"]
BOOKKEEPING = ("start_tracking", "track_cell")  # jobs for MLflow count as overhead
WORKED = re.compile(r"^worked ([\d.]+) s, from ([\d.]+)$", re.MULTILINE)


def read_job(benchmark: Path, log: Path) -> dict[str, float]:
    """Read seconds and largest_mb from a job's benchmark file, and working time and start from its log.

    Raises:
        ZtwError: if the log has no working time.
    """
    row = pd.read_csv(benchmark, sep="\t", nrows=1, na_values=["-"]).iloc[0]
    matches = WORKED.findall(log.read_text(encoding="utf-8", errors="replace"))
    if not matches:
        raise ZtwError(f"{log}: has no working time of the job; delete the job's output to run the job again")
    working, start = map(float, matches[-1])
    return {"seconds": row["s"], "working": working, "start": start, "largest_mb": row["max_rss"]}


def read_jobs(study: Path) -> pd.DataFrame:
    """Return one row per job of the study: its rule and the values of `read_job`."""
    jobs: list[dict[str, Any]] = []
    for benchmark in sorted((study / "benchmarks").rglob("*.tsv")):
        name = benchmark.relative_to(study / "benchmarks")
        log = (study / "logs" / name).with_suffix(".log")
        jobs.append({"rule": name.parts[0].removesuffix(".tsv"), **read_job(benchmark, log)})
    return pd.DataFrame(jobs)


def pipeline_table(study: Path | str, cores: int) -> pd.DataFrame:
    """Return one row per rule and a row "all": seconds of jobs, working seconds, overhead (processes, imports).

    share_of_run is overhead / (cores * wall time). In the row "all", MLflow is overhead, too. Wall time: from the
    start of the first job to the end of the last one; too long if the run was interrupted.

    Args:
        cores: number of cores of the run.
    """
    jobs = read_jobs(Path(study))
    ends = jobs["start"] + jobs["working"]
    available = cores * (ends.max() - (ends - jobs["seconds"]).min())
    table = pd.concat([_by_rule(jobs), _by_rule(jobs.assign(rule="all"))], ignore_index=True)
    tracking = table.loc[table["rule"].isin(BOOKKEEPING), "working"].sum()
    table.loc[table["rule"] == "all", "overhead"] += tracking
    return table.assign(share_of_run=table["overhead"] / available)[COLUMNS]


def _by_rule(jobs: pd.DataFrame) -> pd.DataFrame:
    sums = {name: (name, "sum") for name in ("seconds", "working")}
    groups = jobs.groupby("rule", sort=False, as_index=False)
    table = groups.agg(jobs=("seconds", "size"), **sums, largest_mb=("largest_mb", "max"))
    return table.assign(overhead=table["seconds"] - table["working"])
