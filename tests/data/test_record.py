"""Test the files of a prepared data set: they are memory-mapped, and altered files are found."""

from __future__ import annotations

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from prepared import decoded

import ztw
from ztw.data.prepare import prepare_dataset
from ztw.data.record import joined, of_split
from ztw.data.splits import cell_splits, load_split
from ztw.files import write_json
from ztw.study.settings import DataSettings


@pytest.fixture
def record(tmp_path):
    return prepare_dataset("digits", tmp_path)


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "altered":
        content[-90] ^= 1
    path.write_bytes(content[:-10] if how == "truncated" else content)
    os.utime(path, ns=(1, 1))
    if how == "missing":
        path.unlink()


@pytest.mark.parametrize("what", ["images", "labels"])
@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
def test_a_job_restores_missing_and_altered_files(record, what, how):
    path = Path(record["decoded"]["test"]) / f"test-{what}.npy"
    whole = path.read_bytes()
    damaged(path, how)
    said: list[str] = []
    assert len(load_split(record, "test", said.append)) == 359
    assert path.read_bytes() == whole
    assert f"test-{what}.npy: {how.replace('truncated', 'altered or truncated')}" in said[0]
    assert said[0].endswith("; preparing the data set again")


@pytest.mark.parametrize("what", ["images", "labels"])
def test_prepare_restores_a_truncated_file(record, tmp_path, what):
    path = Path(record["decoded"]["test"]) / f"test-{what}.npy"
    damaged(path, "truncated")
    assert prepare_dataset("digits", tmp_path) == record
    assert len(load_split(record, "test")) == 359


def test_a_deleted_data_root_is_restored_with_equal_records(record, tmp_path):
    shutil.rmtree(tmp_path / "decoded")
    splits = cell_splits(record, DataSettings(), seed=5)
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [1294, 144, 359]
    shutil.rmtree(tmp_path / "decoded")
    again = prepare_dataset("digits", tmp_path)
    assert json.dumps(again, sort_keys=True) == json.dumps(record, sort_keys=True)


def test_restored_files_that_differ_are_refused(record, tmp_path):
    shutil.rmtree(tmp_path / "decoded")
    other = {**record, "sha256": {**record["sha256"], "train-labels.npy": "0" * 64}}
    with pytest.raises(ztw.ZtwError, match=r"cannot be restored: .*digits.* delete") as caught:
        load_split(other, "train")
    assert "\n" not in str(caught.value)


def test_parallel_jobs_restore_files_once(record, tmp_path):
    shutil.rmtree(tmp_path / "decoded")
    said: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: len(load_split(record, "train", said.append)), range(4)))
    assert found == [1438] * 4
    assert said.count("decoding") == 1


def test_a_file_system_without_locks_is_reported_and_used(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    said: list[str] = []
    assert prepare_dataset("digits", tmp_path, report=said.append)["num_classes"] == 10
    assert "no locks (No locks available)" in said[0]
    assert not list(tmp_path.glob(".prepare*"))


def test_a_broken_record_beside_the_files_is_written_again(record, tmp_path):
    beside = Path(record["decoded"]["test"]) / "record.json"
    beside.write_text(beside.read_text()[:50])
    assert len(load_split(record, "test")) == 359
    assert prepare_dataset("digits", tmp_path) == record


def test_every_file_of_a_split_is_in_the_record(record):
    names = {f"{split}-{what}.npy" for split in ("train", "test") for what in ("images", "labels")}
    assert record["sha256"].keys() == names
    assert set(record["decoded"].values()) == {record["decoded"]["test"]}
    folder = Path(record["decoded"]["test"])
    assert {path.name for path in folder.iterdir()} == {*names, "record.json", ".record.json.sha256"}
    images = np.load(folder / "test-images.npy")
    assert np.array_equal(images, decoded(record, "test").images.numpy())


def test_joined_parts_of_a_record_equal_the_record(record):
    train, test = (of_split(record, split) for split in ("train", "test"))
    assert train["counts"] == {"train": 1438}
    assert joined([train, test]) == record
    assert list(cell_splits(train, DataSettings(), 0)) == ["train", "validation"], "no test image is needed"


def test_files_are_mapped(record):
    path = Path(record["decoded"]["train"]) / "train-images.npy"
    mapped = load_split(record, "train")
    assert len(mapped) == 1438
    if Path("/proc/self/maps").exists():
        assert str(path) in Path("/proc/self/maps").read_text()


def test_a_bit_that_flips_without_a_new_time_is_detected(record, tmp_path):
    path = Path(record["decoded"]["train"]) / "train-images.npy"
    whole, times = path.read_bytes(), path.stat()
    for mend in (lambda: load_split(record, "train"), lambda: prepare_dataset("digits", tmp_path)):
        damaged(path, "altered")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        mend()
        assert path.read_bytes() == whole


def test_incomplete_files_of_a_killed_job_are_removed(record, tmp_path):
    folder = Path(record["decoded"]["train"])
    (folder / ".train-images.npy.4711").write_bytes(bytes(1000))
    (folder / "train-images.npy").unlink()
    assert prepare_dataset("digits", tmp_path) == record
    assert not list(folder.glob(".train-images*"))


def test_a_record_with_the_stamps_of_earlier_versions_is_the_same(record, tmp_path):
    beside = Path(record["decoded"]["test"]) / "record.json"
    write_json(beside, {**json.loads(beside.read_text()), "stamps": {"test-labels.npy": [1, 2]}})
    assert prepare_dataset("digits", tmp_path) == record


def test_writes_to_mapped_images_are_private(record):
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
