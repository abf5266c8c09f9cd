"""Which jobs an edit of ztw runs again: for every module, what a real dry run says against the import closure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ztw.study.provenance import NAMES_ONLY, import_closure

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/config/tiny.yaml"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "ztw").rglob("*.py")
)
# What `python -m ztw.study.manual` and the screen import is no job's; a broken import would stop the dry run itself.
JOBS = [path.stem for path in (ROOT / "ztw/jobs").glob("*.py")]
RULES = [job for job in JOBS if (ROOT / f"workflow/scripts/{job}.py").exists()]


def command(house: Path, *extra: str) -> list[str]:
    base = [sys.executable, "-m", "snakemake", "--snakefile", str(house / "workflow/Snakefile")]
    return [*base, "--configfile", str(TINY), "--cores", "2", *extra]


def environment(house: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(house), "ZTW_DATA": str(house / "data")}


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    """A copy of the project in which the tiny study has run."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("ztw", "workflow", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "environment.yml", folder)
    done = subprocess.run(
        command(folder), cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def would_run(house: Path, code: Path) -> set[str]:
    """The rules that a dry run would run with the code below `code`, itself, not because of their inputs."""
    done = subprocess.run(
        command(code, "--dry-run", "--rerun-triggers", "params"),
        cwd=house,
        env=environment(code),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    blocks = re.findall(r"^\s*(?:local)?rule (\w+):\n((?:    .*\n)+)", done.stdout, re.M)
    return {rule for rule, text in blocks if "Params have changed" in text}


def edited_copy(house: Path, target: Path, module: str, line: str) -> Path:
    """The code of the house with a line added to one module."""
    for name in ("ztw", "workflow", "config"):
        shutil.copytree(house / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(house / "environment.yml", target)
    path = target / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    path.write_text(path.read_text() + f"\n{line}\n")
    return target


def expected(module: str) -> set[str]:
    """The rules whose job can run the module."""
    if module in NAMES_ONLY:
        return set()
    return {rule for rule in RULES if module in import_closure(f"ztw.jobs.{rule}")}


def test_nothing_would_run_after_a_run(house, tmp_path):
    assert would_run(house, edited_copy(house, tmp_path, "ztw.files", "# a comment")) == set()


def test_every_module_is_seen(house, tmp_path):
    def check(module: str) -> str:
        code = edited_copy(house, tmp_path / module, module, "_AN_EDIT = 1")
        found = would_run(house, code)
        shutil.rmtree(code)
        return (
            "" if found == expected(module) else f"{module}: {sorted(found)}, not {sorted(expected(module))}"
        )

    with ThreadPoolExecutor(2) as pool:
        wrong = [line for line in pool.map(check, MODULES) if line]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["ztw.models.heads", "ztw.exits.rules", "ztw.jobs.evaluate"])
def test_comments_run_nothing_again(house, tmp_path, module):
    assert would_run(house, edited_copy(house, tmp_path, module, "# why\n\n\n# and how")) == set()
