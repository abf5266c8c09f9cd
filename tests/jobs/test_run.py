"""Test how a script runs its job: with files, cell and settings from Snakemake."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from snakemake.iocontainers import InputFiles, Log, OutputFiles, Params, Wildcards

from ztw.jobs.job import Job
from ztw.jobs.run import run
from ztw.study.layout import Cell, Layout
from ztw.study.settings import EvaluationSettings

CELL = {"dataset": "digits", "arch": "torchvision/resnet18", "seed": "3"}


class Snakemake:
    """A stub of the object that Snakemake gives to a script."""

    rule, threads, config = "train", 1, {"study": "tiny"}

    def __init__(self, folder: Path, **params: Any) -> None:
        self.wildcards = Wildcards(fromdict=CELL)
        self.input = InputFiles(fromdict={"data": ["a.json", "b.json"], "backbone": "c", "checked": "d"})
        self.output = OutputFiles([str(folder / "results/tiny/digits/x.json")])
        self.params = Params(fromdict={"code": "1", **params})
        self.log = Log([str(folder / "log")])


@dataclass(frozen=True)
class Settings:
    """Settings of the job below."""

    evaluation: EvaluationSettings
    cells: tuple[tuple[str, int], ...]


def test_a_job_gets_typed_settings_its_cell_and_its_files(tmp_path):
    seen: list[Any] = []

    def job(given: Job, cell: Cell, settings: Settings) -> None:
        seen.extend([given, cell, settings])

    folder = tmp_path / ".snakemake/storage/fs"  # as in a Snakemake storage
    run(Snakemake(folder, evaluation={"budgets": (0.5, "max")}, cells=[["d", 1]]), job)
    given, cell, settings = seen
    assert given.layout == Layout(folder / "results/tiny")
    assert given.inputs == [Path("a.json"), Path("b.json"), Path("c")], (
        "the one that is only waited for is none"
    )
    assert given.params["code"] == "1"
    assert cell == Cell("digits", "torchvision/resnet18", 3)
    assert settings == Settings(EvaluationSettings(budgets=(0.5, "max")), (("d", 1),))
    assert "done: " in (folder / "log").read_text()


@pytest.mark.parametrize("params", [{}, {"evaluation": {}, "cells": (), "seeds": 3}])
def test_params_that_are_not_the_settings_are_refused(tmp_path, params):
    def job(given: Job, cell: Cell, settings: Settings) -> None:
        pytest.fail("ran")

    with pytest.raises(SystemExit):
        run(Snakemake(tmp_path, **params), job)
    assert "the rule's params are" in (tmp_path / "log").read_text()
