"""Test files of correctly classified samples: read as written, 8 samples per byte."""

from __future__ import annotations

import pytest
import torch

import ztw
from ztw.evaluation.correct import read_correct, write_correct
from ztw.tensors import read_tensors, write_tensors


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 1000])
def test_it_is_read_as_written(tmp_path, samples):
    drawn = torch.randint(2, (2, samples), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    correct = {"held-out@0.5": drawn[0], "paper@max": drawn[1]}
    write_correct(tmp_path / "a.safetensors", correct)
    found = read_correct(tmp_path / "a.safetensors")
    assert {name: own.tolist() for name, own in found.items()} == {
        name: own.tolist() for name, own in correct.items()
    }
    assert read_tensors(tmp_path / "a.safetensors")["paper@max"].nbytes == -(-samples // 8)


def test_no_feasible_budget_gives_no_samples(tmp_path):
    write_correct(tmp_path / "a.safetensors", {})
    assert read_correct(tmp_path / "a.safetensors") == {}


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_tensors(tmp_path / "weights.safetensors", {"head": torch.zeros(2)})
    with pytest.raises(ztw.ZtwError, match=r"weights.safetensors: not a file of correct samples"):
        read_correct(tmp_path / "weights.safetensors")
