"""Run the tiny study through the real DAG, for the tests of the workflow."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests/config/tiny.yaml"
SMALL = ROOT / "tests/faults/tiny.yaml"  # a smaller version, for tests with many runs
TABLES = [f"results/tiny/tables/{name}" for name in ("accuracy_at_budget.csv", "metrics.csv")] + [
    f"results/tiny/tables/accuracy_at_budget.{kind}" for kind in ("md", "tex")
]


# In a background job of a shell, SIGINT is ignored, and the runs of the tests would inherit this
signal.signal(signal.SIGINT, signal.default_int_handler)


def command(config: Path = TINY) -> list[str]:
    return [sys.executable, str(ROOT / "workflow/reproduce.py"), str(config), "--cores", "2"]


def run(folder: Path, config: Path = TINY, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command(config), *extra], cwd=folder, capture_output=True, text=True, timeout=900)


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


def changed_config(folder: Path, **changes) -> Path:
    """Write tiny.yaml with some keys changed, under the same name, so that it is the same study."""
    path = folder / "changed" / "tiny.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**yaml.safe_load(TINY.read_text()), **changes}, sort_keys=False))
    return path


def copy_of(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def shown(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def errors(output: str) -> list[str]:
    """Return the lines of errors."""
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.startswith("error:")]


def jobs_done(output: str) -> set[str]:
    """Return the rules of the jobs that are done according to the screen."""
    return {line.split()[1] for line in output.splitlines() if line.startswith("✓")}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 900
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_started(logs: Path, rule: str, since: float) -> bool:
    """Return whether a job of a rule has started after `since` (Unix time), by its new log."""
    found = False
    for log in [*logs.glob(f"{rule}.log"), *logs.glob(f"{rule}/*.log")]:
        with contextlib.suppress(FileNotFoundError):
            found |= log.stat().st_mtime > since
    return found


def worker(process: subprocess.Popen, rule: str) -> psutil.Process:
    """Wait for a rule's job to start, and return its process."""
    while True:
        assert process.poll() is None, "the run ended before its worker was found"
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    words = " ".join(child.cmdline())
                    if ".snakemake/scripts" in words and f".{rule}.py" in words:
                        logs = Path(child.cwd()) / "results/tiny/logs"
                        if has_started(logs, rule, child.create_time()):
                            return child
        time.sleep(0.02)


def works_in(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("ZTW_RUN") == str(folder)
    return False
