"""Decode the files of built-in data sets and of image folders to uint8 images."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ztw.catalogue.datasets import DatasetMetadata
from ztw.data.archives import read_tar
from ztw.data.folders import Listed
from ztw.data.hold_out import held_out_split
from ztw.data.images import decode_in_threads, read_rgb
from ztw.data.record import Split
from ztw.data.tiny_imagenet import decode_tiny_imagenet
from ztw.errors import ZtwError
from ztw.exits.logits import class_labels
from ztw.progress import Report

Splits = dict[str, Split]
# A registered data set: returns split ("train", "test") -> images uint8 (N, C, size, size), labels (N,)
Read = Callable[[], Mapping[str, tuple[Tensor, Tensor]]]
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# folder in the archive, file of the class names, split -> files, number of labels per row
CIFAR: dict[str, tuple[str, str, dict[str, tuple[str, ...]], int]] = {
    "cifar10": (
        "cifar-10-batches-bin",
        "batches.meta.txt",
        {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)},
        1,
    ),
    "cifar100": (
        "cifar-100-binary",
        "fine_label_names.txt",
        {"train": ("train.bin",), "test": ("test.bin",)},
        2,
    ),
}


def _in_memory(images: Tensor, labels: Tensor, class_names: list[str] | None = None) -> Split:
    channels, height, width = images.shape[1:]
    return Split(labels.long(), (channels, height, width), [images.contiguous().numpy()], class_names)


def _decode_digits(name: str, metadata: DatasetMetadata, root: Path, report: Report) -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ZtwError(
            f"{name}: needs scikit-learn, which cannot be imported ({error}): pip install 'ztw[workflow]'"
        ) from error
    digits = load_digits()
    images = torch.tensor(digits.images * (255 / 16)).round().byte()[:, None]
    labels = torch.tensor(digits.target).long()
    train, test = held_out_split(labels, fraction=0.2, seed=0)
    return {"train": _in_memory(images[train], labels[train]), "test": _in_memory(images[test], labels[test])}


def _decode_svhn(name: str, metadata: DatasetMetadata, root: Path, report: Report) -> Splits:
    from scipy.io import loadmat  # slow

    splits = {}
    for split, file in zip(("train", "test"), metadata.files or {}, strict=True):
        content = loadmat(root / file)  # X: (32, 32, 3, N), y: (N, 1) with 10 for the digit 0
        images = torch.from_numpy(content["X"]).permute(3, 2, 0, 1)
        splits[split] = _in_memory(images, torch.from_numpy(content["y"].astype(np.int64)).flatten() % 10)
    return splits


def _decode_fashion_mnist(name: str, metadata: DatasetMetadata, root: Path, report: Report) -> Splits:
    files = [_read_idx(root / file) for file in metadata.files or {}]  # images, labels; of train, of test
    splits = {}
    for split, images, labels in zip(("train", "test"), files[::2], files[1::2], strict=True):
        splits[split] = _in_memory(images[:, None], labels, list(FASHION))
    return splits


def _read_idx(path: Path) -> Tensor:
    """Read MNIST's format: byte 4 is the number of dimensions; each dimension follows in four bytes."""
    content = path.read_bytes()
    shape = np.frombuffer(content, ">i4", content[3], offset=4)
    return torch.tensor(np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape))


def _decode_cifar(name: str, metadata: DatasetMetadata, root: Path, report: Report) -> Splits:
    """Decode the binary version: the Python version holds pickles. A row: labels (the used one last), pixels."""
    (archive,) = metadata.files or {}
    folder, names, parts, labels = CIFAR[name]
    wanted = [f"{folder}/{file}" for file in (names, *chain(*parts.values()))]
    with gzip.open(root / archive) as unpacked:
        found = read_tar(unpacked, archive, wanted)
    class_names = found[f"{folder}/{names}"].decode().split()
    splits = {}
    for split, files in parts.items():
        content = b"".join(found[f"{folder}/{file}"] for file in files)
        rows = torch.tensor(np.frombuffer(content, np.uint8).reshape(-1, labels + 3 * 32 * 32))
        splits[split] = _in_memory(rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1], class_names)
    return splits


DECODERS: dict[str, Callable[[str, DatasetMetadata, Path, Report], Splits]] = {
    "digits": _decode_digits,
    "fashion_mnist": _decode_fashion_mnist,
    "cifar10": _decode_cifar,
    "cifar100": _decode_cifar,
    "svhn": _decode_svhn,
    "tiny_imagenet": decode_tiny_imagenet,
}


def decode_own(read: Read, name: str, metadata: DatasetMetadata) -> Splits:
    """Decode a registered data set.

    Raises:
        ZtwError: if its images or labels differ from its metadata.
    """
    given = read()
    if not isinstance(given, Mapping) or set(given) != {"train", "test"}:
        raise ZtwError(f"data set {name}: must return a mapping of train and test to (images, labels)")
    splits = {}
    for split in ("train", "test"):
        label = f"data set {name}: {split}"
        if not isinstance(given[split], tuple) or len(given[split]) != 2:
            raise ZtwError(f"{label}: must be (images, labels)")
        images, labels = map(torch.as_tensor, given[split])
        shape = (metadata.channels, metadata.size, metadata.size)
        if images.dtype != torch.uint8 or images.dim() != 4 or tuple(images.shape[1:]) != shape:
            found = f"{images.dtype} {tuple(images.shape)}"
            raise ZtwError(
                f"{label}: images are {found}, must be torch.uint8 (N, {', '.join(map(str, shape))})"
            )
        labels = class_labels(labels)
        if labels.shape != images.shape[:1] or not len(labels):
            raise ZtwError(f"{label}: labels {tuple(labels.shape)} for {len(images)} images")
        seen = labels.unique().tolist()
        if seen[0] < 0 or seen[-1] >= (metadata.num_classes or 0):
            raise ZtwError(
                f"{label}: labels {seen[0]}..{seen[-1]}, must lie in 0..{(metadata.num_classes or 0) - 1}"
            )
        if split == "train" and len(seen) != metadata.num_classes:
            raise ZtwError(f"{label}: {len(seen)} of {metadata.num_classes} classes have images, must be all")
        splits[split] = _in_memory(images, labels)
    return splits


def decode_folder(listing: Mapping[str, Listed], size: int, report: Report) -> Splits:
    """Decode, convert to RGB and resize the images of a folder.

    Args:
        listing: from `ztw.data.folders.list_images`.
        size: side in pixels.
    """
    splits = {}
    for split, listed in listing.items():
        arguments = ((path, path, size) for path in listed.paths())
        chunks = decode_in_threads(_decode_resized, arguments, len(listed.rows), f"decoding {split}", report)
        splits[split] = Split(listed.labels(), (3, size, size), chunks, listed.class_names)
    return splits


def _decode_resized(path: str, name: str, size: int) -> np.ndarray:
    rgb = read_rgb(path, name)
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)
