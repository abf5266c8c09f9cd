"""Show a run on the screen of `reproduce`: a line per running job, and the tables at the end."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ztw.errors import without_password
from ztw.files import check_seal, read_json
from ztw.progress import DONE, FAILED, NOTE, PROGRESS, clock
from ztw.reporting.mlflow_names import UNDELIVERED
from ztw.study.layout import Layout

DIED = re.compile(r"died with <Signals\.(SIG\w+)")  # in Python's message about a killed process
WIDEST = 200  # characters in a line of a table; a narrower terminal wraps the lines
PLAIN_INTERVAL = 15.0  # seconds between two lines of a job if the output is not a terminal


@dataclass
class Job:
    """One try of a job that Snakemake has started."""

    log: Path
    name: str
    state: str = ""  # PROGRESS, DONE or FAILED: the start of the last line in the log; "" if queued
    text: str = ""  # the rest of that line
    problem: str = ""  # Snakemake's message about a failure
    printed: float = 0.0  # time when progress was last printed (Unix time)


class Screen:
    """Show running jobs, from Snakemake's events, and their progress, from their logs.

    On a terminal the lines are redrawn in place (`with screen.live`). Elsewhere a line is printed from time to time.
    """

    def __init__(self, console: Console, logs: Path) -> None:
        self.console, self.logs = console, logs
        self.events, self.log = logs / "events.jsonl", logs / "snakemake.log"
        self.started, self.total, self.end = time.time(), 0, 0
        # Time of every log's last change. Only compared for equality: the file system may have another machine's clock.
        self.seen = {log: log.stat().st_mtime_ns for log in logs.rglob("*.log")}
        self.jobs: dict[int, Job] = {}  # Snakemake's number of a job -> the last try
        self.errors: list[str] = []
        self.noted: set[str] = set()
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def update(self) -> None:
        """Read new events and log lines, and show them."""
        text = self.events.read_text(encoding="utf-8")
        start, self.end = self.end, text.rfind("\n") + 1
        for line in text[start : self.end].splitlines():
            with contextlib.suppress(ValueError):  # an incomplete line, because the disk was full
                self._take(json.loads(line))
        for job in self.jobs.values():
            with contextlib.suppress(FileNotFoundError):  # Snakemake removes the log before a new try
                if job.state != DONE and self.seen.get(job.log) != (changed := job.log.stat().st_mtime_ns):
                    self.seen[job.log] = changed
                    self._read(job, job.log.read_text(encoding="utf-8", errors="replace").splitlines())
        self.live.update(self._picture(), refresh=True)

    def _take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "run_info":
                self.total = event["stats"]["total"]
            case "job_info" if event["log"]:
                place = Path(event["log"][0].partition(f"{self.logs}/")[2].split(" (")[0])
                self.jobs[event["jobid"]] = Job(self.logs / place, "  ".join(place.with_suffix("").parts))
            case "job_error" if event["jobid"] in self.jobs:
                self.jobs[event["jobid"]].problem = " ".join(str(event["rule_msg"] or "").split())
            case "info" if event["message"].startswith("Nothing to be done"):
                self.console.print(event["message"], soft_wrap=True)
            case "error":
                self.errors.append(event["message"])

    def _read(self, job: Job, log: list[str]) -> None:
        for note in [line.removeprefix(NOTE) for line in log if line.startswith(NOTE)]:
            if note not in self.noted:  # a retry, or the job of the other split, may repeat the note
                self.noted.add(note)
                self._print("! ", "yellow", f"{job.name}  {note}")
        lines = [line.split(": ", 1) for line in log if line.startswith((PROGRESS, DONE, FAILED))]
        if not lines:
            return
        job.state, job.text = lines[-1][0] + ": ", lines[-1][1]
        if job.state == DONE:
            self._print("✓ ", "green", f"{job.name}  {job.text}  ", _tail(lines[-2][1] if lines[1:] else ""))
        elif job.state == PROGRESS:
            self._print_if_due(job)

    def _print_if_due(self, job: Job) -> None:
        due = time.time() - job.printed >= PLAIN_INTERVAL
        if due and job.text != "started" and not self.console.is_terminal:
            job.printed = time.time()
            self._print("  ", "", f"{job.name}  {job.text}")

    def _print(self, mark: str, colour: str, text: str, dim: str = "") -> None:
        self.console.print(Text.assemble((mark, colour), text, (dim, "dim")), soft_wrap=True)

    def _picture(self) -> Group:
        grid = Table.grid(padding=(0, 2))
        for job in self.jobs.values():
            if job.state == PROGRESS:
                grid.add_row(*job.name.split("  "), job.text)
        done, queued = (sum(job.state == state for job in self.jobs.values()) for state in (DONE, ""))
        overall = f"{done} of {self.total} steps" if self.total else "starting"
        overall += f", {queued} queued" if queued else ""
        return Group(grid, Text(f"{overall}, {clock(time.time() - self.started)}", style="bold"))

    def explain_failure(self) -> None:
        """Print a line per reason with the jobs that failed for it, or Snakemake's error if no job has failed."""
        failed: dict[str, list[str]] = {}
        for job in self.jobs.values():
            failed.setdefault(self._reason(job), []).append(job.name)
        failed.pop("", None)
        lines = [f"{', '.join(names)}: {reason}" for reason, names in failed.items()] or [self._last_error()]
        if shutil.disk_usage(self.logs).free < 1 << 20:
            lines.append(f"no space left on the disk of {self.logs}")
        for line in lines:
            self.console.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True, highlight=False)
        self.console.print(f"finished work is kept; logs are in {self.logs}", soft_wrap=True)

    def _reason(self, job: Job) -> str:
        """Return why a job failed: the error in its log, else Snakemake's message; "" if it did not fail."""
        if job.state != PROGRESS:
            return job.text if job.state == FAILED else job.problem if not job.state else ""
        signals = sorted({name for error in self.errors for name in DIED.findall(error)})
        reason = f"killed by {' or '.join(signals)}" if signals else "ended without a message"
        if "SIGKILL" in signals or "OUT_OF_ME" in job.problem:
            rule = job.name.split()[0]
            reason += f"; if memory ran out (see `dmesg`), raise mem_mb of {rule} in the profile"
            reason += ", or use fewer cores on one machine (CORES=)"
        return f"{reason}; run the same command again"

    def _last_error(self) -> str:
        """Return Snakemake's last error, or the last line of its log: an error in the arguments sends no event."""
        log = self.log.read_text(errors="replace").strip().splitlines()
        words = [*log[-1:], *self.errors[-1:]] or ["Snakemake ended without a message"]
        return " ".join(line.strip() for line in words[-1].splitlines()[:4]).removeprefix(
            "__main__.py: error: "
        )


def _tail(progress: str) -> str:
    """Return a last progress line without percentage and time left."""
    return re.sub(r"^\s*\d+ %\s+|\s*\d[\d:]* left$", "", progress) if progress != "started" else ""


def undelivered(study: Path) -> dict[Path, str]:
    """Return file of run ids -> reason, for the cells that are not in MLflow yet."""
    files = {path: read_json(path) for path in sorted(study.rglob("seed*/runs.json"))}
    return {path: runs[UNDELIVERED] for path, runs in files.items() if UNDELIVERED in runs}


def print_markdown(console: Console, text: str) -> None:
    """Print the titles, tables and notes of a Markdown text: `rich.markdown` would cut names at 80 columns."""
    table: Table | None = None
    for line in [*text.splitlines(), ""]:
        if not line.startswith("|"):
            if table is not None:
                width, console.width = console.width, max(console.width, WIDEST)
                console.print(table)
                console.width = width
            table = None
            console.print(_styled(line), soft_wrap=True, end="\n" if line else "")
        elif table is None:
            table = Table(box=SIMPLE, padding=(0, 0))
            for place, name in enumerate(_cells(line)):
                table.add_column(name, justify="right" if place else "left", no_wrap=True)
        elif not set(line) <= set("|-:"):
            table.add_row(*map(_styled, _cells(line)))


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def _styled(text: str) -> Text:
    """Show a line that starts with ** in bold, without the **."""
    plain = text.replace("**", "")
    return Text(plain, style="bold" if text.startswith("**") else "")


def sentences(frontier: Path) -> list[str]:
    """Return what a table of the frontier amounts to: its lines of prose, equal lines once."""
    lines = frontier.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(line for line in lines if line and not line.startswith(("|", "**"))))


def show_results(console: Console, study: Path, tracking: str, config: str) -> None:
    """Print the accuracy tables and the paths of all results. Raises ZtwError for an altered table."""
    table = Layout(study).table("accuracy_at_budget", "md")
    for path in sorted(table.parent.glob("*.*")):
        check_seal(path)
    if not table.exists():
        console.print("no table: this command did not ask for one")
        return
    print_markdown(console, table.read_text(encoding="utf-8"))
    if (frontier := table.with_name("frontier.md")).exists():
        console.print("\n".join(sentences(frontier)), soft_wrap=True, markup=False, highlight=False)
    lines = [f"report   {Layout(study).report}", f"pipeline {Layout(study).pipeline}"]
    lines += [f"tables   {table.with_suffix('.csv')}, .md, .tex", f"figures  {study}/figures/"]
    if tracking != "none" and (late := undelivered(study)):
        lines.append(
            f"MLflow   {next(iter(late.values()))}; {len(late)} cells are not logged yet, the next call logs them:"
            f" make reproduce CONFIG={config}"
        )
    elif tracking == "sqlite":
        lines.append(f"MLflow   make ui CONFIG={config}")
    elif tracking != "none":
        lines.append(f"MLflow   {without_password(tracking)}")
    console.print("\n".join(lines), soft_wrap=True, markup=False)
