"""Test tensors in files: read as written, with metadata, and with normal permissions."""

from __future__ import annotations

import torch

from ztw.tensors import read_metadata, read_tensors, write_tensors


def test_tensors_and_metadata_are_read_as_written(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"of": "it"})
    found = read_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensors[name]) for name in tensors)
    assert read_metadata(tmp_path / "x.safetensors") == {"of": "it"}


def test_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "any").touch()
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode
