"""What `reproduce` shows: a line per running job, and the tables at the end. Reads files only."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path

from finished import undelivered
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ztw.errors import without_password
from ztw.files import check_seal
from ztw.progress import DONE, FAILED, NOTE, PROGRESS, clock
from ztw.reporting.devices import read_mixed
from ztw.reporting.differences import read_noise
from ztw.reporting.readable import SAME, Entry, blocks, read_accuracies

DIED = re.compile(r"died with <Signals\.(SIG\w+)")  # what Snakemake writes down of a script that was killed
STEPS = re.compile(r"(\d+) of (\d+) steps")
SCHEDULED = re.compile(r"^    log: (\S.*?)(?: \(check log file.*)?$", re.M)  # of a job that Snakemake starts
PLAIN_INTERVAL = 15.0  # seconds between two lines of a job where the screen cannot be redrawn


class Screen:
    """Mirrors the jobs' logs. On a terminal running jobs are redrawn in place, elsewhere printed now and then."""

    def __init__(self, console: Console, logs: Path, snakemake_log: Path) -> None:
        self.console, self.logs, self.snakemake_log = console, logs, snakemake_log
        self.started = time.time()
        # Time of every log's last change, by the clock of the file system, which may be another machine's.
        self.seen = {log: log.stat().st_mtime_ns for log in logs.rglob("*.log")}
        self.begun: set[Path] = set()
        self.noted: set[str] = set()
        self.running: dict[Path, str] = {}
        self.failures: dict[Path, str] = {}  # what a job said that failed, until it is tried again
        self.printed: dict[Path, float] = {}
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self) -> None:
        """Read what is new in the logs and show it."""
        for log in sorted(self.logs.rglob("*.log")):
            with contextlib.suppress(FileNotFoundError):  # Snakemake removes it before a job is tried again
                changed = log.stat().st_mtime_ns
                if log != self.snakemake_log and self.seen.get(log) != changed:
                    self.seen[log] = changed
                    self.begun.add(log)
                    self._read(log)
        if self.console.is_terminal:
            self.live.update(self._picture(), refresh=True)

    def _read(self, log: Path) -> None:
        words = log.read_text(encoding="utf-8", errors="replace").splitlines()
        name = self._name(log)
        for note in [line.removeprefix(NOTE) for line in words if line.startswith(NOTE)]:
            if note not in self.noted:  # a job may say it again, and the one of another split as well
                self.noted.add(note)
                self.console.print(Text.assemble(("! ", "yellow"), f"{name}  {note}"), soft_wrap=True)
        lines = [line for line in words if line.startswith((PROGRESS, DONE, FAILED))]
        if not lines:
            return
        kind, text = lines[-1].split(": ", 1)
        self.failures.pop(log, None)
        if kind + ": " == PROGRESS:
            self.running[log] = text
            self._print_now_and_then(log, f"  {name}  {text}")
            return
        last = lines[-2].split(": ", 1)[1] if len(lines) > 1 else ""
        self.running.pop(log, None)
        if kind + ": " == DONE:
            line = Text.assemble(("✓ ", "green"), f"{name}  {text}  ", (_tail(last), "dim"))
            self.console.print(line, soft_wrap=True)
        else:
            self.failures[log] = text

    def _print_now_and_then(self, log: Path, line: str) -> None:
        if self.console.is_terminal or "started" in line:
            return
        if time.time() - self.printed.get(log, 0.0) >= PLAIN_INTERVAL:
            self.printed[log] = time.time()
            self.console.print(line, soft_wrap=True, markup=False)

    def _name(self, log: Path) -> str:
        """ "train_ics  fashion_mnist-resnet20-seed0" from logs/train_ics/fashion_mnist-resnet20-seed0.log."""
        return "  ".join(log.relative_to(self.logs).with_suffix("").parts)

    def _picture(self) -> Group:
        words = self.snakemake_log.read_text(errors="replace")
        steps = STEPS.findall(words)
        overall = f"{steps[-1][0]} of {steps[-1][1]} steps" if steps else "starting"
        if waiting := self._queued(words):
            overall += f", {waiting} queued"
        grid = Table.grid(padding=(0, 2))
        for log, text in self.running.items():
            grid.add_row(*self._name(log).split("  "), text)
        return Group(grid, Text(f"{overall}, {clock(time.time() - self.started)}", style="bold"))

    def _queued(self, words: str) -> int:
        """Jobs that Snakemake has handed over and that have not begun: on a cluster, in its queue."""
        return len({Path(log) for log in SCHEDULED.findall(words)} - self.begun)

    def explain_failure(self) -> None:
        """One line per failure and the jobs that told it, or Snakemake's last words when no job has said anything."""
        jobs: dict[str, list[str]] = {}
        for log, text in self.failures.items():
            jobs.setdefault(text, []).append(self._name(log))
        told = [f"{', '.join(names)}: {text}" for text, names in jobs.items()]
        lines = [*told, *self._killed()] or _last_words(self.snakemake_log)
        if shutil.disk_usage(self.logs).free < 1 << 20:
            lines = [*lines, f"no space left on the disk of {self.logs}"]
        for line in lines:
            self.console.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True, highlight=False)
        self.console.print(f"finished work is kept; logs are in {self.logs}", soft_wrap=True)

    def _killed(self) -> list[str]:
        """Jobs that began and said neither that they are done nor why they are not, with the signal that ended them."""
        words = self.snakemake_log.read_text(errors="replace")
        signals = sorted(set(DIED.findall(words)))
        by = f"killed by {' or '.join(signals)}" if signals else "ended without a word"
        killed = "SIGKILL" in by or "OUT_OF_ME" in words
        return [
            f"{self._name(log)}: {by}{self._memory_hint(log) if killed else ''}; call the same command again"
            for log in self.running
        ]

    def _memory_hint(self, log: Path) -> str:
        rule = log.relative_to(self.logs).with_suffix("").parts[0]
        return (
            f"; if memory ran out (`dmesg` says so), raise mem_mb of {rule} in the profile, or on one machine give"
            " the run fewer cores: CORES="
        )


def _tail(progress: str) -> str:
    """The part of a last progress line that is still of interest when the job is done."""
    return re.sub(r"^\s*\d+ %\s+|\s*\d[\d:]* left$", "", progress) if progress != "started" else ""


def _last_words(log: Path) -> list[str]:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    own = [i for i, line in enumerate(lines) if re.match(r"\w*(Error|Exception)\b", line)]  # not a job's
    told = [i for i, line in enumerate(lines) if "Error" in line or "error" in line]
    start = (own[-1:] or told[:1] or [len(lines) - 3])[0]
    return [" ".join(line.strip() for line in lines[max(start, 0) :][:4])]


def show_results(console: Console, study: Path, tracking: str, config: str) -> None:
    """Print the accuracy-at-budget tables, and where everything is; raises ZtwError for an altered table."""
    tables = study / "tables"
    for path in sorted(tables.glob("*.*")):
        check_seal(path)
    if not (tables / "accuracy_at_budget.csv").exists():
        console.print("no table yet: Snakemake was not asked for one")
        return
    noise = read_noise(tables / "differences.csv")
    notes = read_mixed(tables / "devices.csv")
    for block in blocks(read_accuracies(tables / "accuracy_at_budget.csv"), noise, notes):
        console.print(Text(block.title, style="bold"), soft_wrap=True)
        table = Table(box=SIMPLE, padding=(0, 0))
        table.add_column("method", no_wrap=True)
        for budget in block.budgets:
            table.add_column(budget, justify="right", no_wrap=True)
        for method, entries in block.rows.items():
            table.add_row(method, *map(_cell, entries))
        console.print(table)
        if block.note:
            console.print(Text(block.note), soft_wrap=True)
    console.print(f"tables   {study}/tables/accuracy_at_budget.csv, .md, .tex", soft_wrap=True)
    console.print(f"figures  {study}/figures/", soft_wrap=True)
    console.print(f"report   {study}/report.html", soft_wrap=True)
    if tracking != "none" and (late := undelivered(study)):
        console.print(
            f"MLflow   {next(iter(late.values()))}; {len(late)} cells are not delivered, the next call logs them:"
            f" make reproduce CONFIG={config}",
            soft_wrap=True,
            markup=False,
        )
    elif tracking == "sqlite":
        console.print(f"MLflow   make ui CONFIG={config}", soft_wrap=True)
    elif tracking != "none":
        console.print(f"MLflow   {without_password(tracking)}", soft_wrap=True)


def _cell(entry: Entry) -> Text:
    text = f"{entry.text} {SAME}" if entry.mark == "same" else entry.text
    return Text(text, style="bold" if entry.mark == "best" else "")
