"""Test that jobs detect altered files and name them."""

from __future__ import annotations

import subprocess

import pytest
import torch

import ztw
from ztw.data.record import read_study_record
from ztw.exits.logits import read_predictions
from ztw.files import atomic, check_seal, read_json, sealed, write_json
from ztw.jobs.cell import load_ensemble
from ztw.models.checkpoints import load_checkpoint
from ztw.reporting.latency_table import read_latency
from ztw.reporting.readable import read_noise
from ztw.reporting.results import read_curves, read_metrics
from ztw.tensors import read_tensors, write_tensors


def flip(path, place: int) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [8, 60, -2])
def test_a_flipped_bit_in_tensors_is_named(tmp_path, place):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.arange(100.0)})
    assert torch.equal(read_tensors(path)["a"], torch.arange(100.0))
    flip(path, place)
    with pytest.raises(
        ztw.ZtwError, match=r"t.safetensors: altered since it was written .*; delete it and run"
    ):
        read_tensors(path)


def test_a_changed_digit_in_json_is_named(tmp_path):
    path = tmp_path / "m.json"
    write_json(path, {"value": 0.901})
    assert read_json(path) == {"value": 0.901}
    path.write_text(path.read_text().replace("0.901", "0.951"))
    with pytest.raises(ztw.ZtwError, match=r"m.json: altered since it was written"):
        read_json(path)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_curves([path]),
        read_metrics,
        lambda path: read_latency(path, "digits", "resnet8"),
        read_noise,
        lambda path: read_study_record([path]),
        read_predictions,
        lambda path: load_checkpoint(path.with_suffix(".bin"), torch.nn.Linear(1, 1), {}),
        lambda path: load_ensemble(path, "independent", "geometric"),
    ],
)
def test_every_reader_of_an_altered_file_names_it(tmp_path, read):
    with sealed(tmp_path / "a.json") as scratch:
        scratch.write_bytes(b"a,b\r\n1,2\r\n")
    flip(tmp_path / "a.json", 5)
    with pytest.raises(ztw.ZtwError, match=r"a.json: altered since it was written"):
        read(tmp_path / "a.json")


def test_a_seal_is_what_sha256sum_reads(tmp_path):
    with sealed(tmp_path / "a.bin") as scratch:
        scratch.write_bytes(b"abc")
    check = subprocess.run(["sha256sum", "--check", ".a.bin.sha256"], cwd=tmp_path, capture_output=True)
    assert check.returncode == 0


def test_a_rewritten_file_has_a_new_seal(tmp_path):
    for value in (1, 2):
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value


def test_files_from_elsewhere_have_no_seal(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert read_json(tmp_path / "a.json") == {}
    check_seal(tmp_path / "missing")


def test_a_failed_write_leaves_file_and_seal(tmp_path):
    write_json(tmp_path / "a.json", 1)
    before = sorted(path.name for path in tmp_path.iterdir())

    def broken() -> None:
        with sealed(tmp_path / "a.json") as scratch:
            scratch.write_text("2")
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        broken()
    assert read_json(tmp_path / "a.json") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_atomic_makes_folders(tmp_path):
    with atomic(tmp_path / "a/b/c.txt") as scratch:
        scratch.write_text("x")
    assert (tmp_path / "a/b/c.txt").read_text() == "x"
