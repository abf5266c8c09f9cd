"""Show a run on the screen of `reproduce`: a line per running job, and what is done and left overall."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from time_left import Span, seconds_left

from ztw.progress import DONE, FAILED, NOTE, PROGRESS, clock

DIED = re.compile(r"died with <Signals\.(SIG\w+)")  # in Python's message about a killed process
# Seconds between two lines of a job, and of the whole run, if the output is not a terminal
PLAIN_INTERVAL, OVERALL_INTERVAL = 15.0, 60.0
SHARE = re.compile(r"\s*(\d+) %")  # at the start of a line of progress
VARIABLE = re.compile(r"[\d.,]+|'[^']*'|\S*/\S*")  # numbers, quoted names and paths in a note


@dataclass
class Job:
    """One try of a job that Snakemake has started."""

    log: Path
    name: str
    state: str = ""  # PROGRESS, DONE or FAILED: the start of the last line in the log; "" if queued
    text: str = ""  # the rest of that line
    problem: str = ""  # Snakemake's message about a failure
    started: float = 0.0  # time of the start and of the end (Unix time)
    ended: float = 0.0
    printed: float = 0.0  # time when progress was last printed (Unix time)

    def span(self, now: float) -> Span:
        """Return the job's time so far, and the share that is done."""
        if self.state == DONE:
            return Span(self.name.split()[0], self.ended - self.started, 1.0)
        match = SHARE.match(self.text)
        return Span(
            self.name.split()[0], now - self.started, min(0.99, int(match[1]) / 100) if match else 0.0
        )


class Screen:
    """Show running jobs, from Snakemake's events, and their progress, from their logs.

    On a terminal the lines are redrawn in place (`with screen.live`). Elsewhere a line is printed from time to time.
    """

    def __init__(self, console: Console, logs: Path) -> None:
        self.console, self.logs = console, logs
        self.events, self.log = logs / "events.jsonl", logs / "snakemake.log"
        self.started, self.printed, self.end = time.time(), time.time(), 0
        self.counts: dict[str, int] = {}  # rule -> number of jobs in the run
        # Time of every log's last change. Only compared for equality: the file system may have another machine's clock.
        self.seen = {log: log.stat().st_mtime_ns for log in logs.rglob("*.log")}
        self.jobs: dict[int, Job] = {}  # Snakemake's number of a job -> the last try
        self.errors: list[str] = []
        self.noted: dict[str, list[str]] = {}  # kind of note -> the notes
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
        self._print_overall_if_due()
        self.live.update(self._picture(), refresh=True)

    def _take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "run_info":
                self.counts = {
                    rule: count for rule, count in event["stats"].items() if rule not in ("total", "all")
                }
            case "job_info" if event["log"]:
                place = Path(event["log"][0].partition(f"{self.logs}/")[2].split(" (")[0])
                name = "  ".join(place.with_suffix("").parts)
                self.jobs[event["jobid"]] = Job(self.logs / place, name, started=time.time())
            case "job_error" if event["jobid"] in self.jobs:
                self.jobs[event["jobid"]].problem = " ".join(str(event["rule_msg"] or "").split())
            case "info" if event["message"].startswith("Nothing to be done"):
                self.console.print(event["message"], soft_wrap=True)
            case "error":
                self.errors.append(event["message"])

    def _read(self, job: Job, log: list[str]) -> None:
        for note in [line.removeprefix(NOTE) for line in log if line.startswith(NOTE)]:
            told = self.noted.setdefault(kind_of(note), [])
            if not told:  # the first of its kind; `count_notes` tells about the others
                self._print("! ", "yellow", f"{job.name}  {note}")
            if note not in told:  # a retry, or the job of the other split, may repeat the note
                told.append(note)
        lines = [line.split(": ", 1) for line in log if line.startswith((PROGRESS, DONE, FAILED))]
        if not lines:
            return
        job.state, job.text = lines[-1][0] + ": ", lines[-1][1]
        if job.state == DONE:
            job.ended = time.time()
            self._print("✓ ", "green", f"{job.name}  {job.text}  ", _tail(lines[-2][1] if lines[1:] else ""))
        elif job.state == PROGRESS:
            self._print_if_due(job)

    def _print_if_due(self, job: Job) -> None:
        due = time.time() - job.printed >= PLAIN_INTERVAL
        if due and job.text != "started" and not self.console.is_terminal:
            job.printed = time.time()
            self._print("  ", "", f"{job.name}  {job.text}")

    def _print(self, mark: str, colour: str, text: str, dim: str = "") -> None:
        # a terminal's own line breaks could fall inside a number
        soft_wrap = not self.console.is_terminal
        self.console.print(Text.assemble((mark, colour), text, (dim, "dim")), soft_wrap=soft_wrap)

    def _picture(self) -> Group:
        grid = Table.grid(padding=(0, 2))
        for job in self.jobs.values():
            if job.state == PROGRESS:
                grid.add_row(*job.name.split("  "), job.text)
        overall = Table.grid(padding=(0, 2))
        total = sum(self.counts.values())
        bar = [ProgressBar(total, self._count(DONE), width=24)] if total else []
        overall.add_row(*bar, Text(self._overall(), style="bold"))
        return Group(grid, overall)

    def _count(self, state: str) -> int:
        return sum(job.state == state for job in self.jobs.values())

    def _overall(self) -> str:
        """Return the line about the whole run: steps, time, and the estimated time left."""
        now, total = time.time(), sum(self.counts.values())
        if not total:
            return f"starting, {clock(now - self.started)}"
        if self._count(DONE) == total:
            return f"all {total} steps, {clock(now - self.started)}, writing the report"
        queued = f", {queue} queued" if (queue := self._count("")) else ""
        spans = [job.span(now) for job in self.jobs.values() if job.state in (PROGRESS, DONE)]
        left = seconds_left(self.counts, spans, now - self.started)
        known = "" if left is None else f", about {clock(left)} left"
        return f"{self._count(DONE)} of {total} steps{queued}, {clock(now - self.started)}{known}"

    def _print_overall_if_due(self) -> None:
        if not self.console.is_terminal and time.time() - self.printed >= OVERALL_INTERVAL:
            self.printed = time.time()
            self._print("  ", "", self._overall())

    def count_notes(self) -> None:
        """Print how many notes of each kind were not shown."""
        for notes in self.noted.values():
            if more := len(notes) - 1:
                like = f"{notes[0][:60]}{'...' * (len(notes[0]) > 60)}"
                self._print("! ", "yellow", f"{more} more like {like!r}; see {self.logs}")

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


def kind_of(note: str) -> str:
    """Return what notes of one kind share: the text after the name of what it is about, without numbers and names."""
    return VARIABLE.sub("", note.split(": ", 1)[-1])


def _tail(progress: str) -> str:
    """Return a last progress line without percentage and time left."""
    return re.sub(r"^\s*\d+ %\s+|\s*\d[\d:]* left$", "", progress) if progress != "started" else ""
