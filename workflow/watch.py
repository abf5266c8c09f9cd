"""Run Snakemake as a child process, show it while it runs, and stop it with all its own processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from one_run import MARK, cancel_cluster_jobs
from rich.console import Console
from screen import Screen

from ztw.errors import ZtwError
from ztw.study.layout import Layout

PATIENCE = 60.0  # seconds that a run has to stop: it writes checkpoints and cancels jobs of a cluster
LOGGER = Path(__file__).parent.absolute() / "logger"  # folder of Snakemake's logger plugin


def run_snakemake(command: list[str], study: Path, console: Console) -> int:
    """Run Snakemake, show its jobs, and write its report if a table or figure is new; return the exit status."""
    logs = study / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    screen = Screen(console, logs)
    cancel_cluster_jobs(screen.events)
    screen.events.write_text("")
    screen.log.write_text("")
    for sent in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sent, signal.default_int_handler)
    try:
        with screen.live:
            status = _watch(command, screen)
            if status == 0 and report_is_old(study):
                status = _watch([*command, "--report", str(Layout(study).pipeline)], screen)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError, SystemExit):  # the terminal may be closed
            console.print("stopped; finished work is kept, the same command resumes")
        return 130
    finally:
        with contextlib.suppress(ZtwError):  # the next call tries again
            cancel_cluster_jobs(screen.events)
    screen.count_notes()
    if status:
        screen.explain_failure()
    return status


def _watch(command: list[str], screen: Screen) -> int:
    """Run Snakemake in a process group of its own and show its jobs; return its exit status."""
    path = f"{LOGGER}{os.pathsep}{os.environ['PYTHONPATH']}"
    own = {"ZTW_MIRROR": "1", MARK: os.getcwd(), "ZTW_EVENTS": str(screen.events), "PYTHONPATH": path}
    with screen.log.open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **own}, start_new_session=True
        )
    try:
        while process.poll() is None:
            screen.update()
            time.sleep(0.25)
        screen.update()
        return process.returncode
    finally:
        # no job continues without the screen: after Ctrl-C, `reproduce | head`, a closed terminal
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """Interrupt a process group; kill it if it does not end in time, or at a second Ctrl-C."""
    for sent in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired, KeyboardInterrupt):
            if process.poll() is None:
                os.killpg(process.pid, sent)
                process.wait(PATIENCE)


def report_is_old(study: Path) -> bool:
    """Return whether a table or figure is newer than Snakemake's report."""
    report = Layout(study).pipeline
    written = report.stat().st_mtime_ns if report.exists() else 0
    shown = [*study.glob("tables/*"), *study.glob("figures/*")]
    return any(path.stat().st_mtime_ns > written for path in shown)
