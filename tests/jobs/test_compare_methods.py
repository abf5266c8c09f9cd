"""The job that compares methods, and what the tables read of its file."""

from __future__ import annotations

import torch

from ztw.jobs.compare_methods import CompareMethodsSettings, compare_methods
from ztw.jobs.job import Job
from ztw.reporting.differences import read_noise
from ztw.study.layout import Cell, Layout
from ztw.study.settings import EvaluationSettings
from ztw.tensors import write_tensors


def test_differences_of_methods(tmp_path):
    right = torch.tensor([1] * 80 + [0] * 20, dtype=torch.uint8)
    layout = Layout(tmp_path)
    for method, correct in {"a": right, "b": right.clone(), "c": 1 - right}.items():
        write_tensors(layout.correct(Cell("d", "x", 0), method), {"held-out@0.5": correct})
    evaluation = EvaluationSettings(budgets=(0.5, 1.0), protocols=("held-out",))
    compare_methods(Job(layout), CompareMethodsSettings(evaluation, ("a", "b", "c"), (("d", "x", 0),)))
    lines = layout.table("differences").read_text().splitlines()
    assert lines[1] == "d,x,held-out,0.5,a,b,0.000000,0.000000,0.000000,True,1"
    assert len(lines) == 1 + 3, "a pair a line, only where the budget is feasible"
    pairs = read_noise(layout.table("differences"))
    assert ("d", "x", "held-out", "0.5", "b", "a") in pairs
    assert not [pair for pair in pairs if "c" in pair[4:]]
