"""Test Tiny ImageNet: read from its folder or zip, downloaded, and refused if it is not the original."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from prepared import decoded

import ztw
from ztw.catalogue.datasets import DATASETS
from ztw.data.prepare import prepare_dataset


@pytest.fixture
def tiny_imagenet(tmp_path, monkeypatch):
    """Write Tiny ImageNet's layout with 2 classes, of 3 training and 2 validation images each."""
    root = tmp_path / "root" / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("n2\nn1\n")
    (root / "words.txt").write_text("n1\tone\n")
    for wnid, mode, colour in (("n1", "L", 10), ("n2", "RGB", (200, 100, 50))):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for index in range(3):
            place = root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG"
            Image.new(mode, (64, 64), colour).save(place)
    for index in range(4):
        Image.new("RGB", (64, 64), (index, 0, 0)).save(root / "val" / "images" / f"val_{index}.JPEG")
    annotations = "".join(f"val_{index}.JPEG\tn{2 - index % 2}\t0\t0\t9\t9\n" for index in range(4))
    (root / "val" / "val_annotations.txt").write_text(annotations)
    digest = hashlib.sha256()
    images = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.JPEG"))
    for name in [*images, "val/val_annotations.txt", "wnids.txt"]:
        content = (root / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    monkeypatch.setitem(
        DATASETS,
        "tiny_imagenet",
        dataclasses.replace(
            DATASETS["tiny_imagenet"],
            num_classes=2,
            counts={"train": 3, "test": 2},
            digest=digest.hexdigest(),
        ),
    )
    return root


def test_tiny_imagenet_is_read_from_a_folder_or_a_zip(tiny_imagenet, tmp_path):
    record = prepare_dataset("tiny_imagenet", tmp_path / "root")
    assert record["counts"] == {"train": 6, "test": 4}
    assert record["class_names"] == ["n1", "n2"]
    assert (record["crop_padding"], record["colour_jitter"], record["flip"]) == (8, 0.2, True)
    train, test = decoded(record, "train"), decoded(record, "test")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1], "classes in the order of the sorted ids"
    assert test.labels.tolist() == [1, 0, 1, 0]
    assert train.images.shape == (6, 3, 64, 64)
    assert (train.images[0] == 10).all(), "grey becomes RGB"
    assert train.images[5].float().mean((1, 2)).tolist() == pytest.approx([200, 100, 50], abs=3)
    zipped = tmp_path / "zipped" / "tiny-imagenet-200.zip"
    zipped.parent.mkdir()
    with zipfile.ZipFile(zipped, "w") as pack:
        for path in tiny_imagenet.rglob("*"):
            pack.write(path, path.relative_to(tiny_imagenet.parent))
    assert prepare_dataset("tiny_imagenet", zipped.parent)["sha256"] == record["sha256"]
    zipped.write_bytes(zipped.read_bytes()[:100])
    assert prepare_dataset("tiny_imagenet", zipped.parent)["counts"] == record["counts"], "kept"


def test_files_of_operating_systems_are_not_read(tiny_imagenet, tmp_path):
    for name in ("train/n1/images/._n1_0.JPEG", "train/@eaDir/images/n1_0.JPEG", "val/images/._val_0.JPEG"):
        (tiny_imagenet / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny_imagenet / name).write_bytes(b"no image")
    assert prepare_dataset("tiny_imagenet", tmp_path / "root")["counts"] == {"train": 6, "test": 4}


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


TINY_DAMAGE = {
    "train has 2 images of n1, expected 3": lambda root: next(root.glob("train/n1/images/*")).unlink(),
    "test has 1 images of n2, expected 2": lambda root: (root / "val/images/val_0.JPEG").unlink(),
    "train has a class n3 that is not in wnids.txt": lambda root: (root / "train/n2").rename(
        root / "train/n3"
    ),
    "wnids.txt lists 1 classes, expected 2": lambda root: (root / "wnids.txt").write_text("n1"),
    "val_annotations.txt has no line for val_0.JPEG": lambda root: (
        root / "val/val_annotations.txt"
    ).write_text("a\tb"),
    "val/val_annotations.txt cannot be read": lambda root: (root / "val/val_annotations.txt").unlink(),
    "train/n1/images/n1_0.JPEG: unreadable image": lambda root: (
        root / "train/n1/images/n1_0.JPEG"
    ).write_bytes(b"\xff\xd8"),
    "n1_0.JPEG: has 9 x 9 pixels, expected 64 x 64": lambda root: Image.new("L", (9, 9)).save(
        root / "train/n1/images/n1_0.JPEG"
    ),
    "tiny-imagenet-200: altered .*delete it": lambda root: _append(root / "val/images/val_3.JPEG"),
}


@pytest.mark.parametrize("message", TINY_DAMAGE)
def test_an_incomplete_or_altered_tiny_imagenet_is_refused(tiny_imagenet, tmp_path, message):
    TINY_DAMAGE[message](tiny_imagenet)
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        prepare_dataset("tiny_imagenet", tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "root" / "decoded").glob("*")), "nothing half-done is left behind"


def test_tiny_imagenet_is_downloaded(tiny_imagenet, tmp_path, monkeypatch):
    source = tmp_path / "server" / "tiny-imagenet-200.zip"
    source.parent.mkdir()
    with zipfile.ZipFile(source, "w") as pack:
        for path in tiny_imagenet.rglob("*"):
            pack.write(path, path.relative_to(tiny_imagenet.parent))
    known = dataclasses.replace(DATASETS["tiny_imagenet"], url=source.parent.as_uri())
    monkeypatch.setitem(DATASETS, "tiny_imagenet", known)
    root = tmp_path / "empty"
    with pytest.raises(ztw.ZtwError, match=r"tiny-imagenet-200.zip has SHA-256 .*, expected 6198c8ae015e"):
        prepare_dataset("tiny_imagenet", root)
    assert not list(root.iterdir()), "another zip is not kept"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    monkeypatch.setitem(DATASETS, "tiny_imagenet", dataclasses.replace(known, archive_sha256=digest))
    assert prepare_dataset("tiny_imagenet", root)["counts"] == {"train": 6, "test": 4}
    assert sorted(path.name for path in root.iterdir()) == ["decoded", source.name]
    source.unlink()
    with pytest.raises(ztw.ZtwError, match=r"download from .*put .*\.zip or the folder .*/ below"):
        prepare_dataset("tiny_imagenet", tmp_path / "other")


def test_a_broken_zip_is_named(tiny_imagenet, tmp_path):
    root = tmp_path / "zipped"
    root.mkdir()
    (root / "tiny-imagenet-200.zip").write_bytes(b"no zip")
    with pytest.raises(ztw.ZtwError, match=r"tiny-imagenet-200.zip: not a zip .*delete it"):
        prepare_dataset("tiny_imagenet", root)


def test_a_zip_with_a_member_that_leads_out_of_it_is_refused(tiny_imagenet, tmp_path):
    root = tmp_path / "zipped"
    root.mkdir()
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as pack:
        for path in tiny_imagenet.rglob("*"):
            pack.write(path, path.relative_to(tiny_imagenet.parent))
        pack.writestr("tiny-imagenet-200/train/../images/x.JPEG", b"x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ztw.ZtwError, match=r"train has a class \.\. that is not in wnids.txt"):
        prepare_dataset("tiny_imagenet", root)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] in ([], [root / "decoded"])
