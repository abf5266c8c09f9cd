"""Test the decoders of built-in data sets."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
import tarfile

import numpy as np
import pytest
import torch
from prepared import decoded

import ztw
from ztw.catalogue.datasets import DATASETS
from ztw.data.decode import FASHION
from ztw.data.prepare import prepare_dataset


def test_digits(tmp_path):
    record = prepare_dataset("digits", tmp_path)
    train, test = decoded(record, "train"), decoded(record, "test")
    assert (len(train), len(test)) == (1438, 359)
    facts = DATASETS["digits"]
    assert train.images.shape[1:] == (facts.channels, facts.size, facts.size)
    assert train.labels.unique().tolist() == list(range(10))
    assert record["class_names"] == [str(digit) for digit in range(10)]
    assert prepare_dataset("digits", tmp_path) == record, "the second time nothing is done again"


def test_a_missing_package_gives_a_one_line_error(tmp_path, monkeypatch):
    for loaded in [key for key in sys.modules if key.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ztw.ZtwError, match=r"digits: needs scikit-learn, .*pip install") as caught:
        prepare_dataset("digits", tmp_path)
    assert "ztw[workflow]" in str(caught.value)
    assert "\n" not in str(caught.value)


# name -> folder in the archive, file of class names, training files, test file, labels per row
CIFAR_FILES = {
    "cifar10": (
        "cifar-10-batches-bin",
        {"batches.meta.txt": b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n"},
        [f"data_batch_{n}.bin" for n in range(1, 6)],
        "test_batch.bin",
        1,
    ),
    "cifar100": (
        "cifar-100-binary",
        {"fine_label_names.txt": b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n"},
        ["train.bin"],
        "test.bin",
        2,
    ),
}


@pytest.mark.parametrize("name", CIFAR_FILES)
def test_cifar_is_read_from_its_archive(tmp_path, monkeypatch, name):
    folder, contents, train_files, test_file, labels = CIFAR_FILES[name]
    pixels = np.arange(10 * 3072, dtype=np.uint8).reshape(10, 3072)
    rows = np.hstack([np.full((10, labels - 1), 7, np.uint8), np.arange(10, dtype=np.uint8)[:, None], pixels])
    contents = {**contents, test_file: rows.tobytes()}
    # training file n starts with row n
    contents |= {file: np.roll(rows, -n, 0).tobytes() for n, file in enumerate(train_files)}
    archive = tmp_path / next(iter(DATASETS[name].files or {}))
    with tarfile.open(archive, "w:gz") as tar:
        for file, content in sorted(contents.items(), reverse=True):
            info = tarfile.TarInfo(f"{folder}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    files = {archive.name: hashlib.sha256(archive.read_bytes()).hexdigest()}
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], files=files))
    record = prepare_dataset(name, tmp_path)
    assert record["counts"] == {"train": 10 * len(train_files), "test": 10}
    assert record["class_names"] == list("abcdefghij")
    train, test = decoded(record, "train"), decoded(record, "test")
    assert train.labels.tolist() == [(n + i) % 10 for n in range(len(train_files)) for i in range(10)]
    assert test.labels.tolist() == list(range(10)), "the last label of a row"
    assert test.images.shape == (10, 3, 32, 32)
    assert torch.equal(test.images.flatten(1), torch.tensor(pixels)), "channels first, rows then columns"
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "decoded"]


def test_fashion_mnist_s_classes_are_torchvision_s():
    datasets = pytest.importorskip("torchvision.datasets")
    assert list(FASHION) == datasets.FashionMNIST.classes


def test_svhn_is_read_from_its_mat_files(tmp_path, monkeypatch):
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3, 4), dtype=np.uint8)
    for split in ("train", "test"):
        labels = np.array([[10], [1], [2], [9]], dtype=np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": labels})
    known = DATASETS["svhn"]
    files = {file: hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() for file in known.files or {}}
    monkeypatch.setitem(DATASETS, "svhn", dataclasses.replace(known, files=files))
    record = prepare_dataset("svhn", tmp_path)
    assert (record["num_classes"], record["flip"], record["crop_padding"]) == (10, False, 4)
    test = decoded(record, "test")
    assert test.labels.tolist() == [0, 1, 2, 9], "10 stands for the digit 0"
    assert torch.equal(test.images, torch.tensor(pixels).permute(3, 2, 0, 1))
