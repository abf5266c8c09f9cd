"""Test the preparation of data sets, built-in and from image folders."""

from __future__ import annotations

import dataclasses

import pytest
from PIL import Image
from prepared import decoded

import ztw
from ztw.catalogue.datasets import DATASETS
from ztw.data.prepare import prepare_dataset
from ztw.files import data_root
from ztw.study.settings import FolderSettings


def test_corrected_metadata_need_no_decoding(tmp_path, monkeypatch):
    prepare_dataset("digits", tmp_path)
    facts = dataclasses.replace(DATASETS["digits"], mean=(0.5,))
    monkeypatch.setitem(DATASETS, "digits", facts)
    assert prepare_dataset("digits", tmp_path)["mean"] == [0.5]


def test_mean_and_std_are_measured_if_the_metadata_lack_them(tmp_path, monkeypatch):
    known = DATASETS["digits"]
    monkeypatch.setitem(DATASETS, "digits", dataclasses.replace(known, mean=None, std=None))
    record = prepare_dataset("digits", tmp_path)
    assert (tuple(record["mean"]), tuple(record["std"])) == (known.mean, known.std), "the facts are true"
    pixels = decoded(record, "train").images.double() / 255
    assert record["mean"][0] == round(float(pixels.mean()), 4)
    assert record["std"][0] == round(float(pixels.std(correction=0)), 4)


def test_an_unwritable_root_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ztw.ZtwError, match=r"data root .*file/sub': cannot be written .*ZTW_DATA"):
        prepare_dataset("digits", tmp_path / "file" / "sub")


def test_the_root_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ZTW_DATA", raising=False)
    assert data_root() == tmp_path / "ztw"
    monkeypatch.setenv("ZTW_DATA", "/elsewhere")
    assert str(data_root()) == "/elsewhere"
    assert str(data_root("/mine")) == "/mine"


@pytest.fixture
def folder(tmp_path):
    """An image folder of two classes, with images of different sizes and modes."""
    for split, count in (("train", 4), ("val", 2)):
        for colour, label in ((250, "light"), (10, "dark")):
            place = tmp_path / "mine" / split / label
            place.mkdir(parents=True)
            for index in range(count):
                mode = "L" if index % 2 else "RGB"
                Image.new(mode, (20 + index, 30), colour if mode == "L" else (colour,) * 3).save(
                    place / f"{index}.png"
                )
    return tmp_path / "mine"


def test_image_folder(folder, tmp_path):
    settings = {"mine": FolderSettings(path=str(folder), size=8)}
    record = prepare_dataset("mine", tmp_path / "root", settings)
    assert (record["num_classes"], record["counts"]) == (2, {"train": 8, "test": 4})
    train = decoded(record, "train")
    assert train.images.shape == (8, 3, 8, 8)
    brightness = train.images.float().mean((1, 2, 3))
    assert (brightness[train.labels == 0] == 10).all(), "classes in alphabetical order: dark is 0"
    assert (brightness[train.labels == 1] == 250).all()
    assert train.mean[0] == pytest.approx(130 / 255, abs=1e-3)
    (folder / "train/dark/9.png").write_bytes((folder / "train/dark/0.png").read_bytes())
    again = prepare_dataset("mine", tmp_path / "root", settings)
    assert again["counts"]["train"] == 9, "a changed folder is decoded again"


def test_image_folder_errors(folder, tmp_path):
    def prepared():
        return prepare_dataset("mine", tmp_path / "root", {"mine": FolderSettings(path=str(folder), size=8)})

    broken = folder / "train/dark/0.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    with pytest.raises(ztw.ZtwError, match=r"train/dark/0.png: unreadable image"):
        prepared()
    broken.write_bytes(whole)
    (folder / "val/light").rename(folder / "val/bright")
    with pytest.raises(ztw.ZtwError, match=r"classes differ between train and test: \['bright', 'light'\]"):
        prepared()
    (folder / "val").rename(folder / "other")
    with pytest.raises(ztw.ZtwError, match=r"has no folder test or val/"):
        prepared()


def test_unknown_data_set_names_the_known_ones(tmp_path):
    with pytest.raises(ztw.ZtwError, match="unknown data set 'nope'; known: fashion_mnist, cifar10"):
        prepare_dataset("nope", tmp_path)
