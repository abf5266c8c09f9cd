"""The tiny study through the real DAG: what the tests of the workflow share."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests/config/tiny.yaml"
TABLES = [f"results/tiny/tables/{name}" for name in ("accuracy_at_budget.csv", "metrics.csv")] + [
    f"results/tiny/tables/accuracy_at_budget.{kind}" for kind in ("md", "tex")
]


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


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def works_in(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("ZTW_RUN") == str(folder)
    return False
