"""Test which arguments `reproduce` passes on to Snakemake."""

from __future__ import annotations

import sys

import pytest
from tiny_study import ROOT, TINY, run

sys.path.insert(0, str(ROOT / "workflow"))
from reproduce import QUESTION

ASKING = (
    "-n",
    "-np",
    "-kn",
    "-S",
    "--dry-run",
    "--dryrun",
    "--list-changes=params",
    "--report=x.html",
    "--lt",
)
COMPUTING = ("-k", "-Fp", "--report-after-run", "--retries", "3", "results/x/-n", "--rerun-incomplete", "-j1")


@pytest.mark.parametrize(
    ("argument", "asks"), [*((one, True) for one in ASKING), *((one, False) for one in COMPUTING)]
)
def test_arguments_with_which_snakemake_computes_nothing(argument, asks):
    assert bool(QUESTION.fullmatch(argument)) == asks


@pytest.mark.parametrize("argument", ["--logger", "--logger=rich"])
def test_another_logger_is_refused_in_one_line(tmp_path, argument):
    failed = run(tmp_path, TINY, "--", argument, "rich")
    assert failed.returncode == 1
    assert failed.stdout.startswith("error: --logger: ")
    assert failed.stdout.count("\n") == 1
    assert not (tmp_path / "results").exists()
