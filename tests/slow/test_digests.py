"""Test which jobs run again after an edit of each module: a real dry run against the import closure."""

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
# Modules of the manual and of the screen belong to no job. The dry run itself would find a broken import.
JOBS = [path.stem for path in (ROOT / "ztw/jobs").glob("*.py")]
RULES = [job for job in JOBS if (ROOT / f"workflow/scripts/{job}.py").exists()]


def snakemake(study: Path, code: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in the folder of a study with the code below `code`, which is first on the import path."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(code / "workflow/Snakefile")]
    command += ["--configfile", str(TINY), "--cores", "2", *extra]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    return subprocess.run(command, cwd=study, env=environment, capture_output=True, text=True, timeout=900)


def copied(target: Path) -> Path:
    """Copy the code."""
    for name in ("ztw", "workflow", "config"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "environment.yml", target)
    return target


@pytest.fixture(scope="module")
def study(tmp_path_factory, data_root) -> Path:
    """A folder in which a copy of the code has run the tiny study."""
    folder = tmp_path_factory.mktemp("study")
    done = snakemake(folder, copied(tmp_path_factory.mktemp("code")))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def would_run(study: Path, code: Path) -> set[str]:
    """Return the rules that a dry run would run with the code below `code`."""
    done = snakemake(study, code, "--dry-run", "--rerun-triggers", "params", "mtime")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return set(re.findall(r"^\s*(?:local)?rule (\w+):$", done.stdout, re.M)) - {"all"}


@pytest.fixture(scope="module")
def following(study) -> dict[str, set[str]]:
    """Rule -> rules that depend on it, from Snakemake's graph."""
    graph = snakemake(study, ROOT, "--forceall", "--rulegraph", "dot").stdout
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', graph))
    found: dict[str, set[str]] = {name: set() for name in names.values()}
    for before, after in re.findall(r"(\d+) -> (\d+)", graph):
        found[names[before]].add(names[after])
    return found


def edited_copy(target: Path, module: str, line: str) -> Path:
    """Copy the code, and add a line to one module."""
    path = copied(target) / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    path.write_text(path.read_text() + f"\n{line}\n")
    return target


def expected(module: str, following: dict[str, set[str]]) -> set[str]:
    """Return the rules whose jobs import the module, and all rules that depend on them."""
    if module in NAMES_ONLY:
        return set()
    found: set[str] = set()
    # A study from logits has other rules
    rules = [rule for rule in RULES if rule in following]
    todo = [rule for rule in rules if module in (*import_closure(f"ztw.jobs.{rule}"), "ztw.jobs.run")]
    while todo:
        rule = todo.pop()
        if rule not in found:
            found.add(rule)
            todo += following[rule]
    return found - {"all"}


def test_nothing_would_run_after_a_run(study, tmp_path):
    assert would_run(study, edited_copy(tmp_path, "ztw.files", "# a comment")) == set()


def test_every_module_is_seen(study, following, tmp_path):
    def check(module: str) -> str:
        code = edited_copy(tmp_path / module, module, "_AN_EDIT = 1")
        found = would_run(study, code)
        shutil.rmtree(code)
        right = expected(module, following)
        return "" if found == right else f"{module}: {sorted(found)}, not {sorted(right)}"

    with ThreadPoolExecutor(2) as pool:
        wrong = [line for line in pool.map(check, MODULES) if line]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["ztw.models.heads", "ztw.exits.rules", "ztw.jobs.evaluate"])
def test_comments_run_nothing_again(study, tmp_path, module):
    assert would_run(study, edited_copy(tmp_path, module, "# why\n\n\n# and how")) == set()
