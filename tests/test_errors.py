"""Test that errors hold no passwords, and name a path only once."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ztw.data.archives import open_zip
from ztw.data.images import read_rgb
from ztw.download import download
from ztw.errors import ZtwError, without_password
from ztw.files import read_json
from ztw.reporting.results import read_curves
from ztw.tensors import read_tensors


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://ann:secret@host:5000/x", "http://host:5000/x"),
        ("http://secret@host", "http://host"),
        ("http://:secret@host", "http://host"),
        ("'postgresql://ann:se/c@ret@host/db' failed", "'postgresql://host/db' failed"),
        (
            "postgresql://host/db?user=ann&password=secret&x=1",
            "postgresql://host/db?user=ann&password=...&x=1",
        ),
        ("http://a:secret@b and http://c:secret@d", "http://b and http://d"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://[::1]:5000/a", "http://[::1]:5000/a"),
        ("sqlite:////folder/a@b.db", "sqlite:////folder/a@b.db"),
        ("ann@host", "ann@host"),
    ],
)
def test_passwords_of_uris_are_left_out(text, left):
    assert without_password(text) == left


def broken(path: Path) -> Path:
    path.write_text("x")
    return path


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda path: read_json(path), "cannot be read (No such file or directory)"),
        (lambda path: read_tensors(path), "not a safetensors file (No such file or directory); delete"),
        (lambda path: open_zip(path), "not a zip (No such file or directory)"),
        (lambda path: read_rgb(path, str(path)), "unreadable image (No such file or directory)"),
        (lambda path: read_rgb(broken(path), path.name), "unreadable image (cannot identify image file)"),
        (lambda path: read_rgb(io.BytesIO(b"x"), str(path)), "unreadable image (cannot identify image file)"),
        (lambda path: download(f"file://{path}", path.parent / "to", None), "to (No such file or directory)"),
    ],
)
def test_a_path_is_named_once(tmp_path, call, why):
    path = tmp_path / "a thing.json"
    with pytest.raises(ZtwError) as caught:
        call(path)
    assert why in str(caught.value)
    assert str(caught.value).count(path.name) == 1
    assert "Errno" not in str(caught.value)


def test_curves_that_are_broken_are_named_once(tmp_path):
    path = broken(tmp_path / "ztw.parquet")
    with pytest.raises(ZtwError, match="cannot be read") as caught:
        read_curves([path])
    assert str(caught.value).count(path.name) == 1


def test_another_path_than_the_named_one_stays(tmp_path):
    blocking = broken(tmp_path / "file")
    with pytest.raises(ZtwError, match=rf"/file/to \(File exists: {blocking}\)$"):
        download(f"file://{tmp_path}/else", blocking / "to", None)
