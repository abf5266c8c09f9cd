"""Test the job that compares methods, and how the tables read its file."""

from __future__ import annotations

import pytest
import torch

from ztw.errors import ZtwError
from ztw.evaluation.correct import write_correct
from ztw.files import write_json
from ztw.jobs.compare_methods import CompareMethodsSettings, compare_methods
from ztw.jobs.job import Job
from ztw.reporting.readable import read_noise
from ztw.study.layout import Cell, Layout
from ztw.study.settings import EvaluationSettings


def test_differences_of_methods(tmp_path):
    right = torch.tensor([1] * 80 + [0] * 20, dtype=torch.uint8)
    layout = Layout(tmp_path)
    for method, correct in {"a": right, "b": right.clone(), "c": 1 - right}.items():
        write_correct(layout.correct(Cell("d", "x", 0), method), {"held-out@0.5": correct})
    evaluation = EvaluationSettings(budgets=(0.5, 1.0), protocols=("held-out",))
    compare_methods(Job(layout), CompareMethodsSettings(evaluation, ("a", "b", "c"), (("d", "x", 0),)))
    lines = layout.table("differences").read_text().splitlines()
    assert lines[1] == "d,x,held-out,0.5,a,b,0.000000,0.000000,0.000000,True,1"
    assert len(lines) == 1 + 3, "a pair a line, only where the budget is feasible"
    pairs = read_noise(layout.table("differences"))
    assert ("d", "x", "held-out", "0.5", "b", "a") in pairs
    assert not [pair for pair in pairs if "c" in pair[4:]]


def test_a_missing_result_is_an_error_unless_the_study_is_partial(tmp_path):
    layout, cells = Layout(tmp_path), [("d", "x", seed) for seed in (0, 1)]
    for method, seeds in {"a": (0, 1), "b": (0, 1), "c": (1,)}.items():
        for seed in seeds:
            write_correct(
                layout.correct(Cell("d", "x", seed), method), {"paper@max": torch.ones(9, dtype=torch.uint8)}
            )
            write_json(layout.metrics(Cell("d", "x", seed), method), {})
    evaluation = EvaluationSettings(budgets=("max",), protocols=("paper",))
    settings = CompareMethodsSettings(evaluation, ("a", "b", "c"), tuple(cells))
    with pytest.raises(ZtwError, match=r"seed0/correct/c\.safetensors: missing"):
        compare_methods(Job(layout), settings)
    compare_methods(Job(layout), settings, partial=True)
    lines = layout.table("differences").read_text().splitlines()[1:]
    assert [(line.split(",")[4:6], line[-1]) for line in lines] == [
        (["a", "b"], "2"),
        (["a", "c"], "1"),
        (["b", "c"], "1"),
    ]
