"""Run a study with Snakemake: one line per job on the screen, Snakemake's own words in a log, the table at the end.

usage: python workflow/reproduce.py [CONFIG] [--cores N] [-- SNAKEMAKE ARGUMENTS]
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import psutil
from rich.console import Console
from rich.markup import escape

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]  # screen, and ztw itself
from finished import Finished
from gpus import count_gpus
from screen import Screen, show_results

from ztw.errors import ZtwError
from ztw.progress import describe
from ztw.study.config import check_study, read_config, study_name
from ztw.study.settings import Study

HERE = Path(__file__).parent
# Snakemake's arguments with which it computes nothing: what it says is then what was asked for.
QUESTIONS = (
    *("-n", "--dry-run", "--dryrun", "--lint", "--list-rules", "--list", "-l", "--list-target-rules", "--lt"),
    *("--summary", "-S", "--detailed-summary", "-D", "--rulegraph", "--filegraph", "--dag", "--d3dag"),
    *("--report", "--containerize", "--list-changes", "--list-input-changes", "--list-params-changes"),
    *("--unlock", "--delete-all-output", "--help", "-h", "--version", "-v"),
)
PLAIN = {"✓": "+", "±": "+-", "≈": "~", "…": "...", "─": "-", "≥": ">=", "≤": "<="}
SHELL_WORDS = re.compile(r"""[\s"'`$\\;&|<>()*?]""")
MARK = "ZTW_RUN"  # in the environment of everything a run starts, so that a later run finds the orphans


def main() -> int:
    """Run the study; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("config", nargs="?", default="config/quick.yaml")
    parser.add_argument("--cores", type=int, default=usable_cores())
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, extra = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    use_plain_characters()
    console = Console(highlight=False)
    try:
        check_python()
        settings = read_study(arguments.config)
        study = Path("results") / study_name(arguments.config)
        limits = local_limits(arguments.cores, settings.device)
        if any(argument.split("=")[0] in QUESTIONS for argument in extra):
            return ask_snakemake(arguments.config, limits, extra)
        with only_run():
            finished = Finished(arguments.config, settings, study)
            status = 0
            if extra or not finished:
                status = run_snakemake(arguments.config, limits, extra, study, console)
                if status == 0 and not extra:
                    finished.note()
    except (ZtwError, OSError) as error:
        console.print(f"[bold red]error:[/] {escape(describe(error))}", soft_wrap=True)
        return 1
    if status == 0:
        show_results(console, study, settings.tracking, arguments.config)
    return status


def usable_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_python() -> None:
    """Raise ZtwError where Snakemake could not start a script: it hands its Python's path to a shell unquoted."""
    if SHELL_WORDS.search(sys.executable):
        raise ZtwError(
            f"{sys.executable!r}: the path of this Python has a space or another character that shells read as"
            " more than a letter; move it (.venv is in the folder of the Makefile)"
        )


def read_study(path: str) -> Study:
    """Read and check a study; raises ZtwError."""
    config = read_config(path)
    try:
        return check_study(config)
    except ZtwError as error:
        raise ZtwError(f"{path}: {error}") from error


class only_run:
    """Holds the folder's lock; clears what a killed run left. Raises ZtwError when another run is alive."""

    def __enter__(self) -> None:
        Path("results").mkdir(exist_ok=True)
        self.lock: IO[str] = open("results/.lock", "a+")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.lock.seek(0)
            raise ZtwError(
                f"another run is at work in this folder (process {self.lock.read().strip()});"
                " wait for it or stop it"
            ) from error
        self.lock.truncate(0)
        self.lock.write(str(os.getpid()))
        self.lock.flush()
        stop_orphans()
        clear_stale_lock()

    def __exit__(self, *_: object) -> None:
        self.lock.close()


def stop_orphans() -> None:
    """Stop what a killed run of this folder left running."""
    orphans = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == os.getcwd() and process.pid != os.getpid():
                process.kill()
                orphans.append(process)
        except psutil.Error:
            continue
    psutil.wait_procs(orphans, timeout=10)


def clear_stale_lock() -> None:
    """Remove Snakemake's lock when no Snakemake is alive in this folder; raises ZtwError when one is."""
    if not any(Path(".snakemake/locks").glob("*")):
        return
    for process in psutil.process_iter():
        try:
            snakemake = any(Path(part).name == "snakemake" for part in process.cmdline()[:3])
            if snakemake and process.cwd() == os.getcwd():
                raise ZtwError(
                    f"a snakemake run is at work in this folder (process {process.pid}); wait for it"
                )
        except psutil.Error:
            continue
    for lock in Path(".snakemake/locks").glob("*"):
        lock.unlink()


def use_plain_characters() -> None:
    """Where the terminal (or the file) has no others: LANG=C, for instance."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return "".join(PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end

    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def local_limits(cores: int, device: str) -> list[str]:
    """Snakemake's arguments for this machine: cores, and as many jobs with a network at once as GPUs."""
    gpus = count_gpus(device)
    return [*(["--resources", f"gpu={gpus}"] if gpus else []), "--cores", str(cores)]


def snakemake_command(config: str, limits: list[str]) -> list[str]:
    """Snakemake on a study; limits: of `local_limits`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HERE / "Snakefile")]
    return [*command, "--configfile", config, *limits]


def ask_snakemake(config: str, limits: list[str], question: list[str]) -> int:
    """Let Snakemake answer on the screen; returns its exit status."""
    return subprocess.run([*snakemake_command(config, limits), *question], check=False).returncode


def run_snakemake(config: str, limits: list[str], extra: list[str], study: Path, console: Console) -> int:
    """Run Snakemake in a process group of its own and mirror its jobs; returns its exit status."""
    logs = study / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = snakemake_command(config, limits)
    command += ["--report", str(study / "report.html"), "--report-after-run", *extra]
    environment = {**os.environ, "ZTW_MIRROR": "1", MARK: os.getcwd()}
    log = logs / "snakemake.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
        for ends in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(ends, _raise_interrupt)
        try:
            with Screen(console, logs, log) as screen:
                while process.poll() is None:
                    screen.update()
                    time.sleep(0.25)
                screen.update()
        except KeyboardInterrupt:
            stop(process)
            with contextlib.suppress(OSError, SystemExit):  # the terminal may be what has ended
                console.print("stopped; finished work is kept, the same command goes on from here")
            return 130
        finally:
            stop(process)  # nothing computes on without its screen: `reproduce | head`, a closed terminal
        if process.returncode:
            screen.explain_failure()
        return process.returncode


def _raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def stop(process: subprocess.Popen) -> None:
    """End a process group that is still at work: politely, then not."""
    if process.poll() is not None:
        return
    for sent, patience in ((signal.SIGINT, 8), (signal.SIGKILL, 8)):
        try:
            os.killpg(process.pid, sent)
            process.wait(patience)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


if __name__ == "__main__":
    sys.exit(main())
