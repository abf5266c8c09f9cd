"""Splits, augmentation, and the ways in which data can be missing or broken."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ztw
from ztw.data import decode, prepare, sources
from ztw.data.augmentation import adjust_colours, augment, jitter_factors, normalise
from ztw.data.dataset import batches
from ztw.data.decoded import ImageSet
from ztw.data.splits import held_out_split, load_split
from ztw.files import data_root
from ztw.study.facts import DATASETS


def grey(count: int = 6, size: int = 4) -> torch.Tensor:
    return torch.arange(count * size * size, dtype=torch.uint8).view(count, 1, size, size)


def decoded(record: dict, split: str) -> ImageSet:
    """A split whose pixels can be looked at."""
    found = load_split(record, split)
    assert isinstance(found, ImageSet)
    return found


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


def test_colours_are_adjusted_by_torchvisions_formulas():
    from torchvision.transforms import functional as reference

    images = torch.randint(256, (4, 3, 6, 5), dtype=torch.uint8)
    factors = torch.tensor([[0.8, 1.2, 1.0, 0.9], [1.2, 0.8, 1.1, 1.0], [0.8, 1.2, 0.5, 1.5]])
    for image, (brightness, contrast, saturation), out in zip(
        images, factors.T.tolist(), adjust_colours(images, *factors), strict=True
    ):
        expected = reference.adjust_brightness(image / 255, brightness)
        expected = reference.adjust_contrast(expected, contrast)
        expected = reference.adjust_saturation(expected, saturation)
        torch.testing.assert_close(out, 255 * expected, atol=1e-3, rtol=0)


def test_colour_jitter_comes_last_and_is_drawn_only_when_asked_for():
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    plain, jittered = (torch.Generator().manual_seed(5) for _ in range(2))
    expected = augment(images, True, 2, plain)
    out = augment(images, True, 2, jittered, 0.2)
    factors = jitter_factors(20, 0.2, plain)
    assert 0.8 <= factors.min() < 0.85 < 1.15 < factors.max() <= 1.2
    assert torch.equal(out, adjust_colours(expected, *factors))
    assert torch.equal(plain.get_state(), jittered.get_state())


def test_grey_images_have_no_saturation_to_jitter():
    out = adjust_colours(grey(), torch.ones(6), torch.ones(6), torch.full((6,), 0.5))
    torch.testing.assert_close(out, grey().float())


def test_a_subset_shares_the_stored_images():
    whole = ImageSet(grey(10), torch.arange(10), 10, (0.5,), (0.2,), True, 1)
    part = whole.take(torch.tensor([7, 2, 9, 4])).take(torch.tensor([2, 0, 1]))
    assert part.stored is whole.stored
    assert part.to(torch.device("cpu")) is part
    assert part.labels.tolist() == [9, 7, 2]
    assert torch.equal(part.images, whole.images[[9, 7, 2]])
    copied = dataclasses.replace(part, stored=part.images, index=None)
    for lazy, eager in zip(
        *(batches(images, 2, torch.Generator().manual_seed(1), True) for images in (part, copied)),
        strict=True,
    ):
        assert torch.equal(lazy[0], eager[0])
        assert torch.equal(lazy[1], eager[1])


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
    record = prepare.prepare_dataset("digits", tmp_path)
    train, test = decoded(record, "train"), decoded(record, "test")
    assert (len(train), len(test)) == (1438, 359)
    facts = DATASETS["digits"]
    assert train.images.shape[1:] == (facts.channels, facts.size, facts.size)
    assert train.labels.unique().tolist() == list(range(10))
    mean, std = prepare._statistics(decode._histogram(train.images))
    assert (tuple(mean), tuple(std)) == (facts.mean, facts.std)
    assert prepare.prepare_dataset("digits", tmp_path) == record, "the second time nothing is done again"


def test_a_truncated_decoded_file_is_an_error_for_jobs_and_mended_by_prepare(tmp_path):
    record = prepare.prepare_dataset("digits", tmp_path)
    path = Path(record["decoded"]["test"])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ztw.ZtwError, match=r"test.safetensors: missing, truncated or not a safetensors file"):
        load_split(record, "test")
    assert prepare.prepare_dataset("digits", tmp_path)["sha256"] == record["sha256"]
    assert len(load_split(record, "test")) == 359


def test_an_altered_decoded_file_is_an_error(tmp_path):
    record = prepare.prepare_dataset("digits", tmp_path)
    path = Path(record["decoded"]["train"])
    content = bytearray(path.read_bytes())
    content[-9000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ztw.ZtwError, match=r"train.safetensors: altered since it was decoded"):
        load_split(record, "train")


def test_a_decoded_file_is_mapped_and_hashed_only_when_its_stamp_differs(tmp_path, monkeypatch):
    record = prepare.prepare_dataset("digits", tmp_path)
    path = Path(record["decoded"]["train"])
    hashed = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return record["sha256"][path.stem]

    monkeypatch.setattr("ztw.data.splits.sha256", counted)
    mapped = load_split(record, "train")
    assert len(mapped) == 1438
    if Path("/proc/self/maps").exists():
        assert str(path) in Path("/proc/self/maps").read_text()
    assert hashed == []
    old = {key: value for key, value in record.items() if key != "stamps"}
    load_split(old, "train")
    assert hashed == [path]
    os.utime(path, ns=(1, 1))
    load_split(record, "train")
    assert hashed == [path] * 2
    fresh = prepare.prepare_dataset("digits", tmp_path)
    assert hashed == [path] * 3
    load_split(fresh, "train")
    assert prepare.prepare_dataset("digits", tmp_path) == fresh
    assert hashed == [path] * 3, "the record has the new stamp"


def test_a_corrected_fact_needs_no_decoding(tmp_path, monkeypatch):
    prepare.prepare_dataset("digits", tmp_path)
    facts = dataclasses.replace(DATASETS["digits"], mean=(0.5,))
    monkeypatch.setitem(DATASETS, "digits", facts)
    assert prepare.prepare_dataset("digits", tmp_path)["mean"] == [0.5]


def test_cifar_is_read_from_its_archive(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

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
    facts = dataclasses.replace(DATASETS["cifar10"], files=files)
    monkeypatch.setitem(DATASETS, "cifar10", facts)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    record = prepare.prepare_dataset("cifar10", tmp_path)
    assert record["counts"] == {"train": 50, "test": 10}
    test = decoded(record, "test")
    assert test.images.shape == (10, 3, 32, 32)
    assert torch.equal(test.images.flatten(1), torch.tensor(pixels)), "channels first, rows then columns"
    assert sorted(path.name for path in tmp_path.iterdir()) == [archive.name, "decoded"]


def test_svhn_is_read_from_its_mat_files(tmp_path, monkeypatch):
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3, 4), dtype=np.uint8)
    for split in ("train", "test"):
        labels = np.array([[10], [1], [2], [9]], dtype=np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": labels})
    known = DATASETS["svhn"]
    files = {file: hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() for file in known.files or {}}
    monkeypatch.setitem(DATASETS, "svhn", dataclasses.replace(known, files=files))
    record = prepare.prepare_dataset("svhn", tmp_path)
    assert (record["classes"], record["flip"], record["crop_padding"]) == (10, False, 4)
    test = decoded(record, "test")
    assert test.labels.tolist() == [0, 1, 2, 9], "10 stands for the digit 0"
    assert torch.equal(test.images, torch.tensor(pixels).permute(3, 2, 0, 1))


@pytest.fixture
def tiny_imagenet(tmp_path, monkeypatch):
    """The layout of Tiny ImageNet with 2 classes, 3 training and 2 validation images of each."""
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
            classes=2,
            counts={"train": 3, "test": 2},
            digest=digest.hexdigest(),
        ),
    )
    return root


def test_tiny_imagenet_is_read_from_a_folder_or_a_zip(tiny_imagenet, tmp_path):
    record = prepare.prepare_dataset("tiny_imagenet", tmp_path / "root")
    assert record["counts"] == {"train": 6, "test": 4}
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
    assert prepare.prepare_dataset("tiny_imagenet", zipped.parent)["sha256"] == record["sha256"]
    zipped.write_bytes(zipped.read_bytes()[:100])
    assert prepare.prepare_dataset("tiny_imagenet", zipped.parent)["counts"] == record["counts"], "kept"


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
        prepare.prepare_dataset("tiny_imagenet", tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "root" / "decoded").glob("*")), "nothing half-done is left behind"


def test_tiny_imagenet_is_downloaded(tiny_imagenet, tmp_path, monkeypatch):
    source = tmp_path / "server" / "tiny-imagenet-200.zip"
    source.parent.mkdir()
    with zipfile.ZipFile(source, "w") as pack:
        for path in tiny_imagenet.rglob("*"):
            pack.write(path, path.relative_to(tiny_imagenet.parent))
    facts = dataclasses.replace(DATASETS["tiny_imagenet"], url=source.parent.as_uri())
    monkeypatch.setitem(DATASETS, "tiny_imagenet", facts)
    root = tmp_path / "empty"
    assert prepare.prepare_dataset("tiny_imagenet", root)["counts"] == {"train": 6, "test": 4}
    assert sorted(path.name for path in root.iterdir()) == ["decoded", source.name]
    source.unlink()
    with pytest.raises(ztw.ZtwError, match=r"download from .*By hand: put .*\.zip or the folder .*/ below"):
        prepare.prepare_dataset("tiny_imagenet", tmp_path / "other")


def test_a_broken_zip_is_named(tiny_imagenet, tmp_path):
    root = tmp_path / "zipped"
    root.mkdir()
    (root / "tiny-imagenet-200.zip").write_bytes(b"no zip")
    with pytest.raises(ztw.ZtwError, match=r"tiny-imagenet-200.zip: no zip .*delete it to fetch it again"):
        prepare.prepare_dataset("tiny_imagenet", root)


def test_an_unwritable_root_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ztw.ZtwError, match=r"data root .*file/sub': cannot be written .*ZTW_DATA"):
        prepare.prepare_dataset("digits", tmp_path / "file" / "sub")


def test_the_root_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ZTW_DATA", raising=False)
    assert data_root() == tmp_path / "ztw"
    monkeypatch.setenv("ZTW_DATA", "/elsewhere")
    assert str(data_root()) == "/elsewhere"
    assert str(data_root("/mine")) == "/mine"


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
    facts = dataclasses.replace(DATASETS["fashion_mnist"], files=files)
    monkeypatch.setitem(DATASETS, "fashion_mnist", facts)

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
    record = prepare.prepare_dataset("fashion_mnist", tmp_path / "root")
    assert record["counts"] == {"train": 20, "test": 10}
    assert load_split(record, "test").labels.tolist() == list(range(10))
    assert not list((tmp_path / "root").glob(".fetch-*")), "no scratch is left behind"


def test_when_all_sources_fail_the_message_says_what_to_do(fake_mnist, tmp_path):
    with pytest.raises(ztw.ZtwError) as caught:
        prepare.prepare_dataset("fashion_mnist", tmp_path / "root")
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
        prepare.prepare_dataset("fashion_mnist", tmp_path / "root")


def test_a_truncated_system_copy_is_not_used(fake_mnist, tmp_path):
    contents, system = fake_mnist
    system.mkdir()
    for name, content in contents.items():
        (system / f"{name}.gz").write_bytes(gzip.compress(content)[:-20])
    with pytest.raises(ztw.ZtwError, match=r"system copy .* download by torchvision: no network"):
        prepare.prepare_dataset("fashion_mnist", tmp_path / "root")


def test_a_bad_system_copy_is_not_used(fake_mnist, tmp_path):
    contents, system = fake_mnist
    system.mkdir()
    for name, content in contents.items():
        (system / name).write_bytes(content + b"x")
    with pytest.raises(ztw.ZtwError, match=r"system copy .* has SHA-256"):
        prepare.prepare_dataset("fashion_mnist", tmp_path / "root")


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
    record = prepare.prepare_dataset("mine", tmp_path / "root", settings)
    assert (record["classes"], record["counts"]) == (2, {"train": 8, "test": 4})
    train = decoded(record, "train")
    assert train.images.shape == (8, 3, 8, 8)
    brightness = train.images.float().mean((1, 2, 3))
    assert (brightness[train.labels == 0] == 10).all(), "classes in alphabetical order: dark is 0"
    assert (brightness[train.labels == 1] == 250).all()
    assert train.mean[0] == pytest.approx(130 / 255, abs=1e-3)
    (folder / "train/dark/9.png").write_bytes((folder / "train/dark/0.png").read_bytes())
    again = prepare.prepare_dataset("mine", tmp_path / "root", settings)
    assert again["counts"]["train"] == 9, "a changed folder is decoded anew"


def test_image_folder_errors(folder, tmp_path):
    def prepared():
        return prepare.prepare_dataset("mine", tmp_path / "root", {"mine": {"path": str(folder), "size": 8}})

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
        prepare.prepare_dataset("nope", tmp_path)
