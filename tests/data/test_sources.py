"""Test the sources of files: existing files, a system copy, a download, Debian's package; all are checked."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib

import numpy as np
import pytest

import ztw
from ztw.catalogue.datasets import DATASETS
from ztw.data import sources
from ztw.data.prepare import prepare_dataset
from ztw.data.splits import load_split


@pytest.fixture
def fake_mnist(monkeypatch, tmp_path):
    """A small Fashion-MNIST of 20 + 10 images, with its own checksums, a folder as server, and no apt."""
    rng = np.random.default_rng(0)
    contents = {}
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape)
        contents[f"{prefix}-images-idx3-ubyte"] = header + images.tobytes()
        labels = np.arange(count, dtype=np.uint8) % 10
        contents[f"{prefix}-labels-idx1-ubyte"] = (
            b"\x00\x00\x08\x01" + count.to_bytes(4, "big") + labels.tobytes()
        )
    files = {f"FashionMNIST/raw/{name}": hashlib.sha256(c).hexdigest() for name, c in contents.items()}
    url = (tmp_path / "server").as_uri()
    facts = dataclasses.replace(DATASETS["fashion_mnist"], files=files, url=url)
    monkeypatch.setitem(DATASETS, "fashion_mnist", facts)
    monkeypatch.setenv("PATH", "")  # no apt-get
    system = tmp_path / "system"
    monkeypatch.setitem(sources.SYSTEM_COPIES, "fashion_mnist", system)
    return contents, system


def test_a_system_copy_is_used(fake_mnist, tmp_path):
    contents, system = fake_mnist
    system.mkdir()
    for name, content in contents.items():
        (system / f"{name}.gz").write_bytes(gzip.compress(content))
    record = prepare_dataset("fashion_mnist", tmp_path / "root")
    assert record["counts"] == {"train": 20, "test": 10}
    assert load_split(record, "test").labels.tolist() == list(range(10))
    assert not list((tmp_path / "root").glob(".fetch-*")), "no scratch is left behind"


def test_a_download_resumes_with_the_interrupted_file(fake_mnist, tmp_path):
    contents, _ = fake_mnist
    server, root = tmp_path / "server", tmp_path / "root"
    server.mkdir()
    *first, last = contents
    for name in first:
        (server / f"{name}.gz").write_bytes(gzip.compress(contents[name]))
    with pytest.raises(ztw.ZtwError, match=rf"download from file:.*{last}.gz: cannot be downloaded"):
        prepare_dataset("fashion_mnist", root)
    for name in first:
        (server / f"{name}.gz").unlink()
    (server / f"{last}.gz").write_bytes(gzip.compress(contents[last]))
    assert prepare_dataset("fashion_mnist", root)["counts"] == {"train": 20, "test": 10}
    assert sorted(path.name for path in root.iterdir()) == ["FashionMNIST", "decoded"], (
        "nothing is left behind"
    )


@pytest.mark.parametrize("damage", [lambda c: gzip.compress(c[:-1]), lambda c: gzip.compress(c)[:-20]])
def test_a_bad_download_is_not_kept(fake_mnist, tmp_path, damage):
    contents, _ = fake_mnist
    server, root = tmp_path / "server", tmp_path / "root"
    server.mkdir()
    for name, content in contents.items():
        (server / f"{name}.gz").write_bytes(damage(content))
    with pytest.raises(ztw.ZtwError, match="not found, tried"):
        prepare_dataset("fashion_mnist", root)
    assert not list(root.iterdir())


def test_when_all_sources_fail_the_message_says_what_to_do(fake_mnist, tmp_path):
    with pytest.raises(ztw.ZtwError) as caught:
        prepare_dataset("fashion_mnist", tmp_path / "root")
    message = str(caught.value)
    for part in (
        "system copy",
        "No such file",
        "Debian's package dataset-fashion-mnist: apt-get not found",
        " below ",
    ):
        assert part in message
    assert "FashionMNIST/raw/train-images-idx3-ubyte" in message
    assert "\n" not in message


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:-1] + b"x"])
def test_an_altered_source_file_is_named(fake_mnist, tmp_path, damage):
    contents, _ = fake_mnist
    folder = tmp_path / "root" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(damage(content) if name.startswith("t10k-im") else content)
    with pytest.raises(ztw.ZtwError, match=r"t10k-images-idx3-ubyte: altered or truncated .*delete it"):
        prepare_dataset("fashion_mnist", tmp_path / "root")


def test_a_truncated_system_copy_is_not_used(fake_mnist, tmp_path):
    contents, system = fake_mnist
    system.mkdir()
    for name, content in contents.items():
        (system / f"{name}.gz").write_bytes(gzip.compress(content)[:-20])
    with pytest.raises(ztw.ZtwError, match=r"system copy .*ended before.* download from"):
        prepare_dataset("fashion_mnist", tmp_path / "root")


def test_a_bad_system_copy_is_not_used(fake_mnist, tmp_path):
    contents, system = fake_mnist
    system.mkdir()
    for name, content in contents.items():
        (system / name).write_bytes(content + b"x")
    with pytest.raises(ztw.ZtwError, match=r"system copy .* has SHA-256"):
        prepare_dataset("fashion_mnist", tmp_path / "root")
