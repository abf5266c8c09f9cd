"""The files of a prepared data set: mapped, and known again when they are altered."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from prepared import decoded

import ztw
from ztw.data.prepare import prepare_dataset
from ztw.data.splits import load_split


@pytest.fixture
def record(tmp_path):
    return prepare_dataset("digits", tmp_path)


@pytest.mark.parametrize("what", ["images", "labels"])
def test_a_truncated_file_is_an_error_for_jobs_and_mended_by_prepare(record, tmp_path, what):
    path = Path(record["decoded"]) / f"test-{what}.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        ztw.ZtwError, match=rf"test-{what}.npy: altered or truncated .*; delete it and .* run again"
    ):
        load_split(record, "test")
    path.unlink()
    with pytest.raises(ztw.ZtwError, match=rf"test-{what}.npy: missing, .*; delete it and .* run again"):
        load_split(record, "test")
    assert prepare_dataset("digits", tmp_path)["sha256"] == record["sha256"]
    assert len(load_split(record, "test")) == 359


@pytest.mark.parametrize("what", ["images", "labels"])
def test_an_altered_file_is_an_error(record, what):
    path = Path(record["decoded"]) / f"train-{what}.npy"
    content = bytearray(path.read_bytes())
    content[-90] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ztw.ZtwError, match=rf"train-{what}.npy: altered or truncated since it was decoded"):
        load_split(record, "train")
    assert len(load_split(record, "test")) == 359


def test_every_file_of_a_split_is_on_record(record):
    names = {f"{split}-{what}.npy" for split in ("train", "test") for what in ("images", "labels")}
    assert record["sha256"].keys() == record["stamps"].keys() == names
    assert {path.name for path in Path(record["decoded"]).iterdir()} == {*names, "record.json"}
    images = np.load(Path(record["decoded"]) / "test-images.npy")
    assert np.array_equal(images, decoded(record, "test").images.numpy())


def test_files_are_mapped_and_hashed_only_when_their_stamp_differs(record, tmp_path, monkeypatch):
    path = Path(record["decoded"]) / "train-images.npy"
    hashed = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return record["sha256"][path.name]

    monkeypatch.setattr("ztw.data.record.sha256", counted)
    mapped = load_split(record, "train")
    assert len(mapped) == 1438
    if Path("/proc/self/maps").exists():
        assert str(path) in Path("/proc/self/maps").read_text()
    assert hashed == []
    os.utime(path, ns=(1, 1))
    load_split(record, "train")
    assert hashed == [path]
    fresh = prepare_dataset("digits", tmp_path)
    assert hashed == [path] * 2
    load_split(fresh, "train")
    assert prepare_dataset("digits", tmp_path) == fresh
    assert hashed == [path] * 2, "the record has the new stamp"


def test_what_is_mapped_is_private(record):
    images = decoded(record, "test").stored
    before = images[0].clone()
    images[0] = 99
    assert (decoded(record, "test").images[0] == before).all()


def test_a_data_root_may_be_moved(record, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "decoded").rename(moved / "decoded")
    again = prepare_dataset("digits", moved)
    assert again["sha256"] == record["sha256"]
    assert len(load_split(again, "train")) == 1438
