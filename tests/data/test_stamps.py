"""Test stamps of files: through them, a rule depends on files without reading them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ztw.study.provenance import file_stamp, folder_stamp


@pytest.fixture
def folder(tmp_path):
    for name in ("train/cat/a.png", "train/cat/deep/b.png", "val/cat/c.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(b"1234")
    return tmp_path / "mine"


def overwrite(path: Path) -> None:
    """Overwrite a file in place with as many bytes and a later time, so that no folder changes."""
    before = path.stat()
    path.write_bytes(b"5678")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))


@pytest.mark.parametrize("name", ["train/cat/a.png", "train/cat/deep/b.png"])
@pytest.mark.parametrize(
    "change", [overwrite, Path.unlink, lambda path: path.rename(path.with_name("z.png"))]
)
def test_a_change_of_any_file_changes_the_stamp_of_its_split(folder, name, change):
    train, test = folder_stamp(folder, ["train"]), folder_stamp(folder, ["test", "val"])
    assert (train, test) == (folder_stamp(folder, ["train"]), folder_stamp(folder, ["test", "val"]))
    change(folder / name)
    assert folder_stamp(folder, ["train"]) != train
    assert folder_stamp(folder, ["test", "val"]) == test


def test_a_file_behind_a_link_changes_the_stamp(folder, tmp_path):
    (folder / "train/dog").symlink_to(tmp_path / "dogs")
    gone = folder_stamp(folder)
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs/1.png").write_bytes(b"1234")
    before = folder_stamp(folder)
    overwrite(tmp_path / "dogs/1.png")
    assert len({gone, before, folder_stamp(folder)}) == 3


def test_hidden_files_and_the_folder_s_path_do_not_change_the_stamp(folder, tmp_path, monkeypatch):
    before = folder_stamp(folder)
    (folder / "train/.ipynb_checkpoints").mkdir()
    (folder / "train/cat/.DS_Store").write_bytes(b"")
    (folder / "train/cat/@eaDir").mkdir()
    (folder / "train/cat/@eaDir/a.png").write_bytes(b"")
    (folder / "train/Thumbs.db").write_bytes(b"")
    folder.rename(tmp_path / "moved")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_stamp("~/moved") == before


def test_odd_folders_have_a_stamp(tmp_path):
    assert folder_stamp(tmp_path / "nowhere") == folder_stamp(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/loop").symlink_to(tmp_path)
    (tmp_path / "train" / os.fsdecode(b"\xe9")).write_bytes(b"")
    assert folder_stamp(tmp_path) == folder_stamp(tmp_path)


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert file_stamp("~/weights.pt") is file_stamp(None) is None
    (tmp_path / "weights.pt").write_bytes(b"1234")
    before = file_stamp("~/weights.pt")
    overwrite(tmp_path / "weights.pt")
    assert file_stamp("~/weights.pt") != before
