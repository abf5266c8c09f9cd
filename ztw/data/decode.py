"""Files of a data set to uint8 images: built-in ones, and folders of class folders."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ztw.data.folders import Listed
from ztw.data.images import decode_in_threads, read_rgb
from ztw.data.optional import needed
from ztw.data.record import Split
from ztw.data.splits import held_out_split
from ztw.data.tiny_imagenet import decode_tiny_imagenet
from ztw.progress import Report
from ztw.study.facts import DatasetFacts

TORCHVISION = {"fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
Splits = dict[str, Split]


def _in_memory(images: Tensor, labels: Tensor, class_names: list[str] | None = None) -> Split:
    """A split that is in memory."""
    channels, height, width = images.shape[1:]
    return Split(labels.long(), (channels, height, width), [images.contiguous().numpy()], class_names)


def _decode_digits(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    digits = needed("sklearn.datasets", "scikit-learn", name).load_digits()
    images = torch.tensor(digits.images * (255 / 16)).round().byte()[:, None]
    labels = torch.tensor(digits.target).long()
    train, test = held_out_split(labels, fraction=0.2, seed=0)
    return {"train": _in_memory(images[train], labels[train]), "test": _in_memory(images[test], labels[test])}


def _decode_svhn(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    loadmat = needed("scipy.io", "scipy", name).loadmat
    splits = {}
    for split, file in zip(("train", "test"), facts.files or {}, strict=True):
        content = loadmat(root / file)  # X: (32, 32, 3, N), y: (N, 1) with 10 for the digit 0
        images = torch.from_numpy(content["X"]).permute(3, 2, 0, 1)
        splits[split] = _in_memory(images, torch.from_numpy(content["y"].astype(np.int64)).flatten() % 10)
    return splits


def decode_by_torchvision(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    """The splits of a data set that torchvision reads from files below `root`."""
    datasets = needed("torchvision.datasets", "torchvision", name)
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as scratch:
        for archive in [file for file in facts.files or {} if file.endswith(".tar.gz")]:
            with tarfile.open(root / archive) as tar:
                # Python before 3.11.4 has no filters; the archive's SHA-256 is checked
                safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                tar.extractall(scratch, **safely)
            root = Path(scratch)
        return {
            split: _from_torchvision(getattr(datasets, TORCHVISION[name])(root, train=split == "train"))
            for split in ("train", "test")
        }


def _from_torchvision(decoded: Any) -> Split:
    images = torch.as_tensor(decoded.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return _in_memory(images, torch.as_tensor(decoded.targets), list(decoded.classes))


DECODERS: dict[str, Callable[[str, DatasetFacts, Path, Report], Splits]] = {
    "digits": _decode_digits,
    "svhn": _decode_svhn,
    "tiny_imagenet": decode_tiny_imagenet,
}


def decode_folder(listing: Mapping[str, Listed], size: int, report: Report) -> Splits:
    """Decode, convert to RGB and resize every image of `ztw.data.folders.list_images`."""
    splits = {}
    for split, listed in listing.items():
        arguments = ((path, path, size) for path in listed.paths())
        chunks = decode_in_threads(_decode_resized, arguments, len(listed.rows), f"decoding {split}", report)
        splits[split] = Split(listed.labels(), (3, size, size), chunks, listed.classes)
    return splits


def _decode_resized(path: str, name: str, size: int) -> np.ndarray:
    rgb = read_rgb(path, name)
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)
