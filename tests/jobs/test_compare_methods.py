"""The job that compares methods, and what the tables read of its file."""

from __future__ import annotations

import torch

from ztw.jobs.compare_methods import compare_methods
from ztw.reporting.differences import read_noise
from ztw.study.layout import Cell
from ztw.study.settings import EvaluationSettings
from ztw.tensors import write_tensors


def test_differences_of_methods(tmp_path):
    right = torch.tensor([1] * 80 + [0] * 20, dtype=torch.uint8)
    files = {}
    for method, answers in {"a": right, "b": right.clone(), "c": 1 - right}.items():
        file = str(tmp_path / f"{method}.safetensors")
        write_tensors(file, {"held-out@0.5": answers})
        files[Cell("d", "x", 0), method] = file
    evaluation = EvaluationSettings(budgets=(0.5, 1.0), protocols=("held-out",))
    compare_methods(files, evaluation, tmp_path / "differences.csv", lambda text: None)
    lines = (tmp_path / "differences.csv").read_text().splitlines()
    assert lines[1] == "d,x,held-out,0.5,a,b,0.000000,0.000000,0.000000,True,1"
    assert len(lines) == 1 + 3, "a pair a line, only where the budget is feasible"
    pairs = read_noise(tmp_path / "differences.csv")
    assert ("d", "x", "held-out", "0.5", "b", "a") in pairs
    assert not [pair for pair in pairs if "c" in pair[4:]]
