"""Test folders of class folders, decoded and streamed: every file is used or reported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ztw
from ztw.data.prepare import prepare_dataset
from ztw.data.record import of_split
from ztw.data.splits import load_split
from ztw.study.settings import FolderSettings


def put(path: Path, grey: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (grey, grey // 2, 7 + grey % 3)).save(path)


def fill(folder: Path, class_names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write two images of each class in each split."""
    for split in ("train", "val"):
        for number, name in enumerate(class_names):
            for index in range(2):
                put(folder / split / name / f"{index}.png", 20 * number + index)
    return folder


@pytest.fixture(params=[False, True], ids=["decoded", "streamed"])
def prepare(request, tmp_path):
    """Prepare an image folder, decoded or streamed; return its record and the reported lines."""

    def prepared(folder: Path | str) -> tuple[dict, list[str]]:
        said: list[str] = []
        settings = FolderSettings(path=str(folder), size=8, stream=request.param)
        return prepare_dataset("mine", tmp_path / "root", {"mine": settings}, said.append), said

    return prepared


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "mine")


def test_hidden_files_are_ignored(prepare, folder):
    put(folder / "train/.ipynb_checkpoints/0.png")
    put(folder / "train/cat/.ipynb_checkpoints/0.png")
    (folder / "train/.DS_Store").write_bytes(b"")
    (folder / "val/dog/.gone.png").symlink_to("nowhere")
    put(folder / "test/.hidden/0.png")
    record, said = prepare(folder)
    assert (record["num_classes"], record["counts"]) == (2, {"train": 4, "test": 4})
    assert not any(": skipped " in line for line in said)


LEFT = ("@eaDir", "#recycle", "#snapshot", "@Recycle", "lost+found", "__MACOSX", "$RECYCLE.BIN")


@pytest.mark.parametrize("below", ["", "cat", "cat/deep"])
def test_files_of_operating_systems_are_counted(prepare, folder, below):
    """Left in, such a folder would be a class beside the class folders, and its files would be images below them."""
    before, _ = prepare(folder)
    for split in ("train", "val"):
        place = folder / split / below
        for name in LEFT:
            put(place / name / "0.png")
        for name in ("._0.png", "._1.png", "Thumbs.db", "desktop.ini"):
            (place / name).write_bytes(b"no image")
    (folder / "train/dog/System Volume Information").mkdir()
    put(folder / "test/@eaDir/0.png")  # test/ still has no class folders, so that val/ is used
    record, said = prepare(folder)
    assert record == before
    (train, test) = [line for line in said if ": skipped " in line]
    counted = "1 #recycle, 1 #snapshot, 1 $RECYCLE.BIN, 2 ._*, 1 @Recycle, 1 @eaDir"
    assert train.startswith(f"train: skipped {counted}, 1 System Volume Information, 1 Thumbs.db, 1 __MACOSX")
    assert test.startswith(f"test: skipped {counted}, 1 Thumbs.db, 1 __MACOSX, 1 desktop.ini, 1 lost+found (")


CAFE = {form: unicodedata.normalize(form, "caf\xe9") for form in ("NFC", "NFD")}


@pytest.mark.parametrize("train", ["NFC", "NFD"])
def test_classes_in_two_unicode_forms(prepare, tmp_path, train):
    """macOS gives names in NFD: a folder copied from macOS has another name and another place in the order."""
    folder = fill(tmp_path / "mine", ("cafz", CAFE[train]))
    (folder / "val" / CAFE[train]).rename(folder / "val" / CAFE["NFD" if train == "NFC" else "NFC"])
    record, said = prepare(folder)
    assert record["class_names"] == ["cafz", CAFE["NFC"]]
    assert f"classes {CAFE['NFC']}: the names of their folders use several Unicode forms" in str(said)
    for split in ("train", "test"):
        found = load_split(record, split)
        assert found.labels.tolist() == [0, 0, 1, 1]
        means = torch.cat([images for images, _ in found.batches(4)]).mean((1, 2, 3))
        assert means[:2].max() < means[2:].min(), "the second of the two is the brighter one"


def test_both_unicode_forms_in_one_split(prepare, tmp_path):
    folder = fill(tmp_path / "mine", ("cat", CAFE["NFC"]))
    put(folder / "train" / CAFE["NFD"] / "deep/9.png", 90)
    (folder / "val" / CAFE["NFD"]).mkdir()
    record, said = prepare(folder)
    assert (record["num_classes"], record["counts"]) == (2, {"train": 5, "test": 4})
    assert load_split(record, "train").labels.tolist() == [0, 0, 0, 1, 1]
    assert len(torch.cat([images for images, _ in load_split(record, "train").batches(2)])) == 5
    assert [line for line in said if "several Unicode forms" in line]
    put(folder / "train" / CAFE["NFD"] / "deep/9.png", 91)
    assert prepare(folder)[0]["decoded"]["train"] != record["decoded"]["train"]


def test_one_unicode_form_alone_is_not_reported(prepare, tmp_path):
    record, said = prepare(fill(tmp_path / "mine", ("cafz", CAFE["NFD"])))
    assert record["class_names"] == ["cafz", CAFE["NFC"]]
    assert not [line for line in said if "Unicode" in line]


def test_images_in_subfolders_belong_to_the_class(prepare, folder):
    put(folder / "train/cat/2024/may/0.png", 200)
    (folder / "elsewhere").mkdir()
    put(folder / "elsewhere/5.png")
    (folder / "train/dog/linked").symlink_to(folder / "elsewhere")
    record, _ = prepare(folder)
    assert record["counts"]["train"] == 6
    assert load_split(record, "train").labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_every_skipped_kind_is_counted(prepare, folder):
    for name in ("a.gif", "b.GIF", "sub/c.gif", "notes.txt", "README"):
        path = folder / "train/cat" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    put(folder / "train/loose.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "train/dog/pipe.png")
    record, said = prepare(folder)
    assert record["counts"]["train"] == 4
    (line,) = [line for line in said if ": skipped " in line]
    assert line.startswith(
        "train: skipped 3 .gif, 1 .txt, 1 files without a suffix, 1 images outside a class folder, 1 special files"
    )


def test_classes_without_an_image_are_all_named(prepare, folder):
    (folder / "train/cow").mkdir()
    (folder / "train/cow/1.gif").write_bytes(b"")
    (folder / "train/pig/sub").mkdir(parents=True)
    (folder / "val/hen").mkdir()
    with pytest.raises(ztw.ZtwError) as caught:
        prepare(folder)
    message = str(caught.value)
    assert "train: no readable image in 'cow' (1 .gif), 'pig' (empty)" in message
    assert "test: no readable image in 'hen' (empty)" in message
    assert "\n" not in message


def hashed(folder: Path, names: tuple[str, str] = ("train", "val")) -> str:
    """Return the output of the manual's shell command."""
    command = f"find {' '.join(names)} -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True).stdout.split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's xargs and sha256sum")
def test_one_hash_of_all_images(folder, tmp_path):
    """The record of "test" has the hash of all paths and contents. Another expected hash gives an error with both."""

    def prepared(stream: bool = False, **keys: Any) -> dict:
        settings = FolderSettings(path=str(folder), size=8, stream=stream, **keys)
        return prepare_dataset("mine", tmp_path / "root", {"mine": settings})

    record = prepared()
    right = record["images_sha256"]
    assert right == hashed(folder)
    assert prepared(sha256=right) == prepared() == record, "a study that names it trains nothing again"
    assert of_split(record, "test")["images_sha256"] == right
    assert "images_sha256" not in of_split(record, "train"), "it would train again for other test images"
    assert "images_sha256" not in prepared(stream=True)
    assert prepared(stream=True, sha256=right)["images_sha256"] == right
    changes: list[Callable[[], object]] = [
        lambda: put(folder / "val/cat/0.png", 99),
        lambda: (folder / "train/dog/0.png").rename(folder / "train/dog/x.png"),
        lambda: (folder / "train/dog/1.png").unlink(),
        lambda: (folder / "val").rename(folder / "test"),
    ]
    for change in changes:
        change()
        for stream in (False, True):
            with pytest.raises(
                ztw.ZtwError, match=r"^data\.image_folders\.mine\.sha256: expected "
            ) as caught:
                prepared(stream, sha256=right)
            assert right in str(caught.value)
            assert hashed(folder, ("train", "test" if (folder / "test").exists() else "val")) in str(
                caught.value
            )


def test_the_hash_ignores_unicode_forms_and_files_of_operating_systems(tmp_path):
    found = []
    for form in ("NFC", "NFD"):
        folder = fill(tmp_path / form, ("cat", CAFE[form]))
        put(folder / "train" / CAFE[form] / f"{CAFE[form]}.png")
        settings = FolderSettings(path=str(folder), size=8)
        found.append(prepare_dataset("mine", tmp_path / "root", {"mine": settings})["images_sha256"])
        (folder / "train/.DS_Store").write_bytes(b"")
        put(folder / "train/cat/@eaDir/0.png")
        found.append(prepare_dataset("mine", tmp_path / "root2", {"mine": settings})["images_sha256"])
    assert len(set(found)) == 1


def test_dead_links_are_all_named(prepare, folder):
    (folder / "train/cat/gone.png").symlink_to("nowhere.png")
    (folder / "train/dog/gone").symlink_to(folder / "no folder")
    (folder / "val/owl").symlink_to(folder / "no folder")
    (folder / "val/dog/loop").symlink_to(folder / "val")
    with pytest.raises(ztw.ZtwError) as caught:
        prepare(folder)
    for link in ("train/cat/gone.png", "train/dog/gone", "val/owl", "val/dog/loop"):
        assert str(folder / link) in str(caught.value)
    assert str(caught.value).count("2 dead links: ") == 2


def test_links_to_images_and_classes_are_followed(prepare, folder):
    (folder / "train/dog").rename(folder / "dogs")
    (folder / "train/dog").symlink_to(folder / "dogs")
    (folder / "train/cat/9.png").symlink_to(folder / "dogs/0.png")
    assert prepare(folder)[0]["counts"]["train"] == 5


def test_the_used_one_of_two_folders_is_reported(prepare, folder):
    shutil.copytree(folder / "val", folder / "test")
    assert f"test: uses the images in {folder / 'test'} only" in prepare(folder)[1]


def test_class_names_that_are_numbers_sort_as_numbers(prepare, tmp_path):
    folder = fill(tmp_path / "mine", tuple(str(number) for number in range(12)))
    record, _ = prepare(folder)
    assert record["class_names"] == [str(number) for number in range(12)]
    assert load_split(record, "test").labels.tolist() == [label for label in range(12) for _ in range(2)]


def test_other_class_names_sort_alphabetically(prepare, tmp_path):
    record, _ = prepare(fill(tmp_path / "mine", ("b", "10", "9", "a")))
    assert record["class_names"] == ["10", "9", "a", "b"]


def test_a_home_folder_is_expanded(prepare, tmp_path, monkeypatch, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    record, _ = prepare("~/mine")
    assert record["counts"] == {"train": 4, "test": 4}
    assert len(list(load_split(record, "test").batches(2))) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
def test_names_that_are_not_utf_8(prepare, tmp_path):
    folder = fill(tmp_path / "mine", ("cat", os.fsdecode("caf\xe9".encode("latin-1"))))
    put(folder / "train/cat" / os.fsdecode(b"\xfc.png"))
    (folder / "train/cat" / os.fsdecode(b"\xfc.gi\xe9")).write_bytes(b"")
    record, said = prepare(folder)
    assert os.fsencode(record["class_names"][0]) == b"caf\xe9"
    for split in ("train", "test"):
        images = torch.cat([images for images, _ in load_split(record, split).batches(3)])
        assert len(images) == record["counts"][split]
    for line in said:
        line.encode()
    (folder / "train/cat" / os.fsdecode(b"\xfc.png")).write_bytes(b"no image")
    with pytest.raises(ztw.ZtwError, match=r"cat/\\xfc.png: unreadable image"):
        prepare(folder)


def test_all_unreadable_images_are_named_at_once(prepare, folder):
    for name in ("train/cat/0.png", "train/dog/1.png", "val/dog/0.png"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ztw.ZtwError, match=r"^3 images cannot be used: ") as caught:
        prepare(folder)
    for name in ("train/cat/0.png", "train/dog/1.png", "val/dog/0.png"):
        assert f"{folder / name}: unreadable image" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_many_unreadable_images_twenty_are_named(prepare, folder):
    for index in range(30):
        (folder / f"train/cat/broken{index:02}.png").write_bytes(b"")
    with pytest.raises(ztw.ZtwError, match=r"^30 images .*broken19.png: [^;]*; and 10 more$"):
        prepare(folder)


def test_an_image_overwritten_in_place_is_decoded_again(prepare, folder):
    before, _ = prepare(folder)
    same, _ = prepare(folder)
    assert same == before
    status = (folder / "val/cat/0.png").stat()
    put(folder / "val/cat/0.png", 99)
    os.utime(folder / "val/cat/0.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after, _ = prepare(folder)
    assert after["decoded"]["train"] == before["decoded"]["train"]
    assert after["decoded"]["test"] != before["decoded"]["test"]
    assert [after[key] for key in ("mean", "std", "class_names")] == [
        before[key] for key in ("mean", "std", "class_names")
    ]


def test_a_deleted_cache_is_restored_unless_the_images_changed(prepare, folder, tmp_path):
    record, _ = prepare(folder)
    shutil.rmtree(tmp_path / "root")
    assert load_split(record, "train").labels.tolist() == [0, 0, 1, 1]
    assert prepare(folder)[0] == record
    shutil.rmtree(tmp_path / "root")
    put(folder / "train/cat/0.png", 77)
    with pytest.raises(ztw.ZtwError, match="cannot be restored: the images of mine"):
        load_split(record, "train")


@pytest.mark.parametrize("value", [0, 93, 255])
@pytest.mark.parametrize("almost", [0, 1])
def test_a_constant_channel_is_named_and_trains(tmp_path, value, almost):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for index in range(20):
                pixels = np.random.default_rng(index).integers(0, 255, (40, 40, 3)).astype(np.uint8)
                pixels[:, :, 1] = value
                if index == 0 and name == "cat":
                    pixels[0, 0, 1] = value + (almost if value < 255 else -almost)
                path = tmp_path / "mine" / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    said: list[str] = []
    settings = {"mine": FolderSettings(path=str(tmp_path / "mine"), size=40)}
    record = prepare_dataset("mine", tmp_path / "root", settings, said.append)
    assert record["std"][1] == 1.0
    assert any("channel 1 of 0..2 is constant over the training images" in line for line in said)
    for images, _ in load_split(record, "train").batches(8):
        assert images.isfinite().all()
        assert images[:, 1].abs().max() < 0.01
    assert [0.2 < record["std"][channel] < 0.4 for channel in (0, 2)] == [True, True]
