"""Splits, augmentation, and the ways in which data can be missing or broken."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ztw
from ztw import data, fetch, sources
from ztw.data import ImageSet, augment, batches, held_out_split, load_split, normalise


def grey(count: int = 6, size: int = 4) -> torch.Tensor:
    return torch.arange(count * size * size, dtype=torch.uint8).view(count, 1, size, size)


def test_split_is_stratified_seeded_and_complete():
    labels = torch.arange(1000) % 10
    train, held_out = held_out_split(labels, 0.1, seed=3)
    assert torch.bincount(labels[held_out]).tolist() == [10] * 10
    assert torch.cat([train, held_out]).sort().values.tolist() == list(range(1000))
    assert held_out.tolist() == held_out_split(labels, 0.1, seed=3)[1].tolist()
    assert held_out.tolist() != held_out_split(labels, 0.1, seed=4)[1].tolist()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1e-6])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ztw.ZtwError, match="validation fraction"):
        held_out_split(torch.arange(100) % 2, fraction, seed=0)


def test_normalise_by_hand():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)  # (1, 2, 1, 2)
    out = normalise(images, mean=(0.5, 0.2), std=(0.25, 0.1))
    expected = torch.tensor([[[[-2.0, 2.0]], [[0.0, 2.0]]]])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_flip_mirrors_about_half_of_the_images():
    images = torch.randint(255, (400, 1, 3, 3), dtype=torch.uint8)
    out = augment(images, True, 0, torch.Generator().manual_seed(0))
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 150 < int(same.sum()) < 250


def test_crop_shifts_by_at_most_the_padding():
    images = torch.zeros(300, 1, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 1
    out = augment(images, False, 2, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    places = out.nonzero()[:, 2:]
    assert len(places) == 300, "the centre never leaves a crop of padding 2"
    assert places.unique(dim=0).shape[0] == 25


def test_augmentation_is_seeded():
    images = torch.randint(255, (20, 3, 8, 8), dtype=torch.uint8)
    first, second = (augment(images, True, 2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


def test_batches_see_every_image_once():
    images = ImageSet(grey(10), torch.arange(10), 10, (0.0,), (1.0,))
    for generator in (None, torch.Generator().manual_seed(0)):
        labels = torch.cat([labels for _, labels in batches(images, 4, generator)])
        assert sorted(labels.tolist()) == list(range(10))


def test_a_training_batch_of_one_is_dropped():
    images = ImageSet(grey(9), torch.arange(9), 9, (0.0,), (1.0,))
    sizes = [len(labels) for _, labels in batches(images, 4, torch.Generator().manual_seed(0))]
    assert sizes == [4, 4]
    assert [len(labels) for _, labels in batches(images, 4)] == [4, 4, 1]


def test_digits_and_the_facts_table(tmp_path):
    record = fetch.prepare_dataset("digits", tmp_path)
    train, test = load_split(record, "train"), load_split(record, "test")
    assert (len(train), len(test)) == (1438, 359)
    facts = data.DATASETS["digits"]
    assert train.images.shape[1:] == (facts.channels, facts.size, facts.size)
    assert train.labels.unique().tolist() == list(range(10))
    mean, std = fetch._statistics(train.images)
    assert (tuple(mean), tuple(std)) == (facts.mean, facts.std)
    assert fetch.prepare_dataset("digits", tmp_path) == record, "the second time nothing is done again"


def test_a_truncated_decoded_file_is_an_error_for_jobs_and_mended_by_prepare(tmp_path):
    record = fetch.prepare_dataset("digits", tmp_path)
    path = Path(record["decoded"]["test"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ztw.ZtwError, match=r"test.safetensors: missing, truncated or not a safetensors file"):
        load_split(record, "test")
    assert fetch.prepare_dataset("digits", tmp_path) == record
    assert len(load_split(record, "test")) == 359


def test_an_altered_decoded_file_is_an_error(tmp_path):
    record = fetch.prepare_dataset("digits", tmp_path)
    path = Path(record["decoded"]["train"])
    content = bytearray(path.read_bytes())
    content[-9000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ztw.ZtwError, match=r"train.safetensors: altered since it was decoded"):
        load_split(record, "train")


def test_a_corrected_fact_needs_no_decoding(tmp_path, monkeypatch):
    fetch.prepare_dataset("digits", tmp_path)
    facts = dataclasses.replace(data.DATASETS["digits"], mean=(0.5,))
    monkeypatch.setitem(data.DATASETS, "digits", facts)
    assert fetch.prepare_dataset("digits", tmp_path)["mean"] == [0.5]


def test_cifar_is_read_from_its_archive(tmp_path, monkeypatch):
    from torchvision import datasets

    archive = tmp_path / "cifar-10-python.tar.gz"
    pixels = np.arange(10 * 3072, dtype=np.uint8).reshape(10, 3072)
    with tarfile.open(archive, "w:gz") as tar:
        meta = pickle.dumps({"label_names": list("abcdefghij")})
        batch = pickle.dumps({"data": pixels, "labels": list(range(10))})
        names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
        for name, content in [("batches.meta", meta), *((name, batch) for name in names)]:
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    files = {archive.name: hashlib.sha256(archive.read_bytes()).hexdigest()}
    facts = dataclasses.replace(data.DATASETS["cifar10"], files=files)
    monkeypatch.setitem(data.DATASETS, "cifar10", facts)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    record = fetch.prepare_dataset("cifar10", tmp_path)
    assert record["counts"] == {"train": 50, "test": 10}
    test = load_split(record, "test")
    assert test.images.shape == (10, 3, 32, 32)
    assert torch.equal(test.images.flatten(1), torch.tensor(pixels)), "channels first, rows then columns"
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "decoded"]


def test_an_unwritable_root_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ztw.ZtwError, match=r"data root .*file/sub': cannot be written .*ZTW_DATA"):
        fetch.prepare_dataset("digits", tmp_path / "file" / "sub")


def test_the_root_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ZTW_DATA", raising=False)
    assert fetch.data_root() == tmp_path / "ztw"
    monkeypatch.setenv("ZTW_DATA", "/elsewhere")
    assert str(fetch.data_root()) == "/elsewhere"
    assert str(fetch.data_root("/mine")) == "/mine"


@pytest.fixture
def fake_mnist(monkeypatch, tmp_path):
    """A Fashion-MNIST of 20 + 10 images with checksums of its own, and no network."""
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
    facts = dataclasses.replace(data.DATASETS["fashion_mnist"], files=files)
    monkeypatch.setitem(data.DATASETS, "fashion_mnist", facts)

    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr(sources, "_download", no_network)
    monkeypatch.setattr(sources, "_apt_download", no_network)
    system = tmp_path / "system"
    monkeypatch.setitem(sources.SYSTEM_COPIES, "fashion_mnist", system)
    return contents, system


def test_a_system_copy_is_used(fake_mnist, tmp_path):
    contents, system = fake_mnist
    system.mkdir()
    for name, content in contents.items():
        (system / f"{name}.gz").write_bytes(gzip.compress(content))
    record = fetch.prepare_dataset("fashion_mnist", tmp_path / "root")
    assert record["counts"] == {"train": 20, "test": 10}
    assert load_split(record, "test").labels.tolist() == list(range(10))
    assert not list((tmp_path / "root").glob(".fetch-*")), "no scratch is left behind"


def test_when_all_sources_fail_the_message_says_what_to_do(fake_mnist, tmp_path):
    with pytest.raises(ztw.ZtwError) as caught:
        fetch.prepare_dataset("fashion_mnist", tmp_path / "root")
    message = str(caught.value)
    for part in ("system copy", "download by torchvision: no network", "Debian's package", "By hand: put"):
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
        fetch.prepare_dataset("fashion_mnist", tmp_path / "root")


def test_a_truncated_system_copy_is_not_used(fake_mnist, tmp_path):
    contents, system = fake_mnist
    system.mkdir()
    for name, content in contents.items():
        (system / f"{name}.gz").write_bytes(gzip.compress(content)[:-20])
    with pytest.raises(ztw.ZtwError, match=r"system copy .* download by torchvision: no network"):
        fetch.prepare_dataset("fashion_mnist", tmp_path / "root")


def test_a_bad_system_copy_is_not_used(fake_mnist, tmp_path):
    contents, system = fake_mnist
    system.mkdir()
    for name, content in contents.items():
        (system / name).write_bytes(content + b"x")
    with pytest.raises(ztw.ZtwError, match=r"system copy .* has SHA-256"):
        fetch.prepare_dataset("fashion_mnist", tmp_path / "root")


@pytest.fixture
def folder(tmp_path):
    """Two classes, images of different sizes and modes."""
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
    settings = {"mine": {"path": str(folder), "size": 8}}
    record = fetch.prepare_dataset("mine", tmp_path / "root", settings)
    assert (record["classes"], record["counts"]) == (2, {"train": 8, "test": 4})
    train = load_split(record, "train")
    assert train.images.shape == (8, 3, 8, 8)
    brightness = train.images.float().mean((1, 2, 3))
    assert (brightness[train.labels == 0] == 10).all(), "classes in alphabetical order: dark is 0"
    assert (brightness[train.labels == 1] == 250).all()
    assert train.mean[0] == pytest.approx(130 / 255, abs=1e-3)
    (folder / "train/dark/9.png").write_bytes((folder / "train/dark/0.png").read_bytes())
    again = fetch.prepare_dataset("mine", tmp_path / "root", settings)
    assert again["counts"]["train"] == 9, "a changed folder is decoded anew"


def test_image_folder_errors(folder, tmp_path):
    def prepare():
        return fetch.prepare_dataset("mine", tmp_path / "root", {"mine": {"path": str(folder), "size": 8}})

    broken = folder / "train/dark/0.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    with pytest.raises(ztw.ZtwError, match=r"train/dark/0.png: unreadable image"):
        prepare()
    broken.write_bytes(whole)
    (folder / "val/light").rename(folder / "val/bright")
    with pytest.raises(ztw.ZtwError, match=r"classes differ between train and test: \['bright', 'light'\]"):
        prepare()
    (folder / "val").rename(folder / "other")
    with pytest.raises(ztw.ZtwError, match=r"has no folder test or val/"):
        prepare()


def test_unknown_data_set_names_the_known_ones(tmp_path):
    with pytest.raises(ztw.ZtwError, match="unknown data set 'nope'; known: fashion_mnist, cifar10"):
        fetch.prepare_dataset("nope", tmp_path)
