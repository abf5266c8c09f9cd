"""The tiny study through the real DAG: what the tests of the workflow share."""

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
SMALL = ROOT / "tests/faults/tiny.yaml"  # the same with less of everything, for runs by the dozen
TABLES = [f"results/tiny/tables/{name}" for name in ("accuracy_at_budget.csv", "metrics.csv")] + [
    f"results/tiny/tables/accuracy_at_budget.{kind}" for kind in ("md", "tex")
]


# A shell's background job is started with SIGINT ignored, which the runs of the tests would inherit
signal.signal(signal.SIGINT, signal.default_int_handler)


def command(config: Path = TINY) -> list[str]:
    return [sys.executable, str(ROOT / "workflow/reproduce.py"), str(config), "--cores", "2"]


def run(folder: Path, config: Path = TINY, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command(config), *extra], cwd=folder, capture_output=True, text=True, timeout=900)


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


def changed_config(folder: Path, **changes) -> Path:
    """tiny.yaml with some keys changed, under the same name: the same study."""
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
    """The lines that tell what went wrong."""
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.startswith("error:")]


def jobs_done(output: str) -> set[str]:
    """The rules whose jobs the screen says were done."""
    return {line.split()[1] for line in output.splitlines() if line.startswith("✓")}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 900
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_started(logs: Path, rule: str, since: float) -> bool:
    """Whether a job of a rule has started since then (Unix time); Snakemake removes its log before that."""
    found = False
    for log in [*logs.glob(f"{rule}.log"), *logs.glob(f"{rule}/*.log")]:
        with contextlib.suppress(FileNotFoundError):
            found |= log.stat().st_mtime > since
    return found


def worker(process: subprocess.Popen, rule: str) -> psutil.Process:
    """The process of a rule's job, once it is at work."""
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
