"""Test streamed data sets: listed once, decoded by workers, with the same batches for any number of workers."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ztw
from ztw.catalogue.datasets import DATASETS
from ztw.data.augmentation import normalise
from ztw.data.prepare import prepare_dataset
from ztw.data.splits import load_split
from ztw.data.streamed import StreamedSet, centre_crop, random_resized_crop
from ztw.study.settings import FolderSettings


@pytest.fixture
def folder(tmp_path):
    """An image folder of cat and dog: 5 training and 2 test images each, of noise in several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for name in ("dog", "cat"):
            place = tmp_path / "mine" / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 255, (40 + index, 50 - 3 * index, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"é{index}.png")
            (place / "readme.txt").write_text("no image")
    return tmp_path / "mine"


def settings(folder: Path) -> dict[str, FolderSettings]:
    return {"mine": FolderSettings(path=str(folder), size=16, stream=True)}


@pytest.fixture
def record(folder, tmp_path):
    return prepare_dataset("mine", tmp_path / "root", settings(folder))


def opened(record: dict, split: str, workers: int = 0) -> StreamedSet:
    found = load_split({**record, "workers": workers}, split)
    assert isinstance(found, StreamedSet)
    return found


def test_the_record_has_the_keys_of_a_decoded_one(record, tmp_path):
    decoded = prepare_dataset("digits", tmp_path / "root")
    assert set(record) == set(decoded) | {"streamed", "folder"}
    assert (record["num_classes"], record["channels"], record["size"]) == (2, 3, 16)
    assert record["counts"] == {"train": 10, "test": 4}
    assert record["mean"] == [0.485, 0.456, 0.406], "ImageNet's"
    assert (record["flip"], record["crop_padding"], record["colour_jitter"]) == (True, 0, 0.0)


def test_paths_and_labels_stay_together(record, folder):
    train = opened(record, "train")
    assert (len(train), train.num_classes, train.device.type) == (10, 2, "cpu")
    assert train.labels.tolist() == [0] * 5 + [1] * 5, "classes in alphabetical order"
    names = [f"train/{name}/é{index}.png" for name in ("cat", "dog") for index in range(5)]
    assert [train.path(index).relative_to(folder).as_posix() for index in range(10)] == names
    part = train.take(torch.tensor([8, 1, 6])).take(torch.tensor([2, 0]))
    assert [part.path(index).relative_to(folder).as_posix() for index in range(2)] == [names[6], names[8]]
    assert part.labels.tolist() == [1, 1]


def test_evaluation_batches_are_torchvisions_in_order(record):
    from torchvision import transforms

    reference = transforms.Compose(
        [transforms.Resize(round(16 * 256 / 224)), transforms.CenterCrop(16), transforms.PILToTensor()]
    )
    test = opened(record, "test", workers=2)
    expected = []
    for index in range(4):
        with Image.open(test.path(index)) as image:
            expected.append(reference(image.convert("RGB")))
    images, labels = (torch.cat(parts) for parts in zip(*test.batches(3), strict=True))
    assert labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(images, normalise(torch.stack(expected), test.mean, test.std))


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_the_number_of_workers_changes_nothing(record, jitter):
    seen = []
    for workers in (0, 2):
        train = dataclasses.replace(opened(record, "train", workers), colour_jitter=jitter)
        generator = torch.Generator().manual_seed(4)
        state = torch.get_rng_state()
        epochs = [list(train.batches(3, generator, augmented=True)) for _ in range(2)]
        assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"
        seen.append([tensor for epoch in epochs for batch in epoch for tensor in batch])
    assert len(seen[0]) == 2 * 2 * 3, "a last batch of one is dropped"
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))
    assert not torch.equal(seen[0][0], seen[0][6]), "another epoch, another order and other crops"


def test_shuffled_without_augmentation_is_the_evaluation_crop(record):
    train = opened(record, "train")
    plain = torch.cat([images for images, _ in train.batches(4)])
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cat([images for images, _ in train.batches(5, generator)]), plain[order])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(record, workers):
    test = opened(record, "test", workers)
    test.path(3).write_bytes(b"no image")
    with pytest.raises(ztw.ZtwError, match=r"val/dog/é1.png: unreadable image") as caught:
        list(test.batches(2))
    assert "\n" not in str(caught.value)


def test_a_dead_worker_gives_a_one_line_error(record, monkeypatch):
    monkeypatch.setattr("ztw.data.streamed.read_rgb", lambda *_: os._exit(1))
    with pytest.raises(ztw.ZtwError, match=r"a worker process failed .*fewer workers") as caught:
        list(opened(record, "test", workers=1).batches(2))
    assert "\n" not in str(caught.value)


def test_a_changed_folder_is_listed_again(record, folder, tmp_path):
    assert prepare_dataset("mine", tmp_path / "root", settings(folder)) == record
    place = folder / "train" / "cat"
    (place / "new.png").write_bytes((place / "é0.png").read_bytes())
    again = prepare_dataset("mine", tmp_path / "root", settings(folder))
    assert again["counts"]["train"] == 11


@pytest.mark.parametrize("size", [(120, 80), (1000, 10)])  # the second is too wide for any random crop
def test_random_crops_are_torchvisions_and_flip(size):
    from torchvision.transforms import RandomResizedCrop

    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    image, flips = Image.fromarray(pixels), 0
    for seed in range(100):
        state = torch.get_rng_state()
        crops = [random_resized_crop(image, 20, flip, seed) for flip in (False, True)]
        assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            assert crops[0] == RandomResizedCrop(20)(image)
        mirrored = crops[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert crops[1] in (crops[0], mirrored)
        flips += crops[1] == mirrored
    assert 35 < flips < 65


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (225, 224)])
def test_centre_crop_of_odd_sizes(size):
    assert centre_crop(Image.new("RGB", size), 224).size == (224, 224)


def imagenet(tmp_path, monkeypatch, folder):
    monkeypatch.setitem(
        DATASETS, "imagenet", dataclasses.replace(DATASETS["imagenet"], num_classes=2, size=16)
    )
    folder.rename(tmp_path / "imagenet")
    return tmp_path / "imagenet"


def test_imagenet_is_streamed_from_below_the_root(tmp_path, monkeypatch, folder):
    with pytest.raises(ztw.ZtwError, match=r"imagenet: not found; put its images into train/"):
        prepare_dataset("imagenet", tmp_path)
    root = imagenet(tmp_path, monkeypatch, folder)
    (root / "test").mkdir()
    (root / "test" / "unlabelled.png").write_bytes(b"")
    record = prepare_dataset("imagenet", tmp_path)
    assert (record["num_classes"], record["size"], record["streamed"]) == (2, 16, True)
    assert len(opened(record, "test")) == 4


def test_imagenet_of_the_wrong_shape_is_refused(tmp_path, monkeypatch, folder):
    root = imagenet(tmp_path, monkeypatch, folder)
    (root / "train" / "dog").rename(tmp_path / "dog")
    with pytest.raises(ztw.ZtwError, match=r"2 class folders expected in train, found 1"):
        prepare_dataset("imagenet", tmp_path)
    (tmp_path / "dog").rename(root / "train" / "dog")
    for path in list((root / "val").glob("*/*.png")):
        path.rename(root / "val" / f"{path.parent.name}{path.name}")
    with pytest.raises(ztw.ZtwError, match=r"val': has no class folders; move its images"):
        prepare_dataset("imagenet", tmp_path)
