"""Files of a data set to uint8 images: built-in ones, folders of class folders, and how they are written."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ztw.data.folders import read_rgb
from ztw.data.sources import TORCHVISION, FileTree, find_archive
from ztw.data.splits import held_out_split
from ztw.errors import ZtwError
from ztw.files import atomic
from ztw.progress import Report
from ztw.study.facts import DatasetFacts


@dataclass
class Split:
    """One split on its way into a file: labels int64 (N,); the images come in uint8 (B, C, size, size)."""

    labels: Tensor
    shape: tuple[int, int, int]  # (C, size, size)
    chunks: Iterable[np.ndarray]


Splits = dict[str, Split]


def _whole(images: Tensor, labels: Tensor) -> Split:
    """A split that is in memory."""
    channels, height, width = images.shape[1:]
    return Split(labels.long(), (channels, height, width), [images.contiguous().numpy()])


def _decode_digits(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images * (255 / 16)).round().byte()[:, None]
    labels = torch.tensor(digits.target).long()
    train, test = held_out_split(labels, fraction=0.2, seed=0)
    return {"train": _whole(images[train], labels[train]), "test": _whole(images[test], labels[test])}


def _decode_svhn(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    from scipy.io import loadmat

    splits = {}
    for split, file in zip(("train", "test"), facts.files or {}, strict=True):
        content = loadmat(root / file)  # X: (32, 32, 3, N), y: (N, 1) with 10 for the digit 0
        images = torch.from_numpy(content["X"]).permute(3, 2, 0, 1)
        splits[split] = _whole(images, torch.from_numpy(content["y"].astype(np.int64)).flatten() % 10)
    return splits


def decode_by_torchvision(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    """The splits of a data set that torchvision reads from files below `root`."""
    from torchvision import datasets

    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as scratch:
        for archive in [file for file in facts.files or {} if file.endswith(".tar.gz")]:
            with tarfile.open(root / archive) as tar:
                safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                tar.extractall(
                    scratch, **safely
                )  # Python before 3.11.4 has no filters; its SHA-256 is checked
            root = Path(scratch)
        return {
            split: _from_torchvision(getattr(datasets, TORCHVISION[name])(root, train=split == "train"))
            for split in ("train", "test")
        }


def _from_torchvision(decoded: Any) -> Split:
    images = torch.as_tensor(decoded.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return _whole(images, torch.as_tensor(decoded.targets))


def _decode_tiny_imagenet(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    """Classes in the order of the sorted WordNet ids; its validation images are our test split."""
    tree = FileTree(find_archive(name, facts, root, report))
    files = _tiny_imagenet_files(tree)
    classes = sorted(set(tree.read("wnids.txt").decode().split()))
    _check_counts(tree.path, files, classes, facts)
    digest, size = Digest(tree), int(facts.size or 0)
    splits = {}
    for split, rows in files.items():
        labels = torch.tensor([classes.index(wnid) for _, wnid in rows])
        arguments = _tree_arguments(digest, [file for file, _ in rows], size)
        chunks = _in_threads(_decode_exactly, arguments, len(rows), f"decoding {split}", report)
        splits[split] = Split(labels, (3, size, size), chunks)
    splits["test"].chunks = _verified(splits["test"].chunks, digest, facts.digest)
    return splits


DECODERS: dict[str, Callable[[str, DatasetFacts, Path, Report], Splits]] = {
    "digits": _decode_digits,
    "svhn": _decode_svhn,
    "tiny_imagenet": _decode_tiny_imagenet,
}


def _tiny_imagenet_files(tree: FileTree) -> dict[str, list[tuple[str, str]]]:
    """split -> [(file, WordNet id)], in the order of the names."""
    lines = tree.read("val/val_annotations.txt").decode().splitlines()
    annotated = {line.split("\t")[0]: line.split("\t")[1] for line in lines if "\t" in line}
    found: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for name in tree.names():
        match name.split("/"):
            case ["train", wnid, "images", file] if file.endswith(".JPEG"):
                found["train"].append((name, wnid))
            case ["val", "images", file] if file.endswith(".JPEG"):
                if file not in annotated:
                    raise ZtwError(f"{tree.path}: val/val_annotations.txt has no line for {file}")
                found["test"].append((name, annotated[file]))
    return found


def _check_counts(
    path: Path, files: dict[str, list[tuple[str, str]]], classes: list[str], facts: DatasetFacts
) -> None:
    """Raise ZtwError unless every class has the number of images in each split that the facts say."""
    if len(classes) != facts.classes:
        raise ZtwError(f"{path}: wnids.txt lists {len(classes)} classes, expected {facts.classes}")
    for split, expected in (facts.counts or {}).items():
        counts = Counter(wnid for _, wnid in files[split])
        if unknown := sorted(counts.keys() - set(classes)):
            raise ZtwError(f"{path}: {split} has a class {unknown[0]} that is not in wnids.txt")
        for wnid in classes:
            if counts[wnid] != expected:
                raise ZtwError(f"{path}: {split} has {counts[wnid]} images of {wnid}, expected {expected}")


class Digest:
    """A running SHA-256 of the files of a tree: of "name NUL size NUL content", one after the other."""

    def __init__(self, tree: FileTree) -> None:
        self.tree, self._hash = tree, hashlib.sha256()

    def read(self, name: str) -> bytes:
        """The content of a file, which is added to the digest."""
        content = self.tree.read(name)
        self._hash.update(f"{name}\0{len(content)}\0".encode())
        self._hash.update(content)
        return content

    def hexdigest(self) -> str:
        """Of what was read, in the order it was read."""
        return self._hash.hexdigest()


def _tree_arguments(digest: Digest, names: list[str], size: int) -> Iterator[tuple]:
    for name in names:
        yield BytesIO(digest.read(name)), f"{digest.tree.path}/{name}", size


def _decode_exactly(file: IO[bytes], name: str, size: int) -> np.ndarray:
    rgb = read_rgb(file, name)
    if rgb.size != (size, size):
        raise ZtwError(f"{name}: has {rgb.width} x {rgb.height} pixels, expected {size} x {size}")
    return np.asarray(rgb).transpose(2, 0, 1)


def _decode_resized(path: Path, name: str, size: int) -> np.ndarray:
    rgb = read_rgb(path, name)
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)


def _in_threads(
    decode: Callable[..., np.ndarray], arguments: Iterator[tuple], total: int, what: str, report: Report
) -> Iterator[np.ndarray]:
    """Decode images in order, 1000 at a time; Pillow lets go of the GIL, and arguments are read meanwhile."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, total, 1000):
            report(f"{what}: {start}/{total} images")
            futures = [pool.submit(decode, *each) for each in islice(arguments, 1000)]
            yield np.stack([future.result() for future in futures])


def _verified(chunks: Iterable[np.ndarray], digest: Digest, expected: str | None) -> Iterator[np.ndarray]:
    """The last images, then the files of labels; raises ZtwError when what was read is not the original."""
    yield from chunks
    for name in ("val/val_annotations.txt", "wnids.txt"):
        digest.read(name)
    if (found := digest.hexdigest()) != expected:
        raise ZtwError(
            f"{digest.tree.path}: altered (SHA-256 of its files {found[:12]}..., expected {str(expected)[:12]}...);"
            " delete it to fetch it again"
        )


Stamped = dict[str, list[tuple[str, str, int, int]]]


def decode_folder(rows_of: Stamped, size: int, report: Report) -> Splits:
    """Decode, convert to RGB and resize every image of `_stamped`."""
    classes = sorted({row[0] for row in rows_of["train"]})
    splits = {}
    for split, rows in rows_of.items():
        labels = torch.tensor([classes.index(row[0]) for row in rows])
        arguments = ((Path(path), path, size) for _, path, *_ in rows)
        chunks = _in_threads(_decode_resized, arguments, len(rows), f"decoding {split}", report)
        splits[split] = Split(labels, (3, size, size), chunks)
    return splits


def write_split(path: Path, split: Split) -> Tensor:
    """Write a safetensors file of labels and images chunk by chunk, as `save_file` needs all twice in memory.

    Returns how often each value occurs in each channel, int64 (C, 256).
    """
    shape, labels = [len(split.labels), *split.shape], split.labels.numpy().astype("<i8").tobytes()
    end = len(labels) + int(np.prod(shape))
    tensors = {
        "labels": {"dtype": "I64", "shape": [len(split.labels)], "data_offsets": [0, len(labels)]},
        "images": {"dtype": "U8", "shape": shape, "data_offsets": [len(labels), end]},
    }
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)  # the format aligns what follows
    counts = torch.zeros(split.shape[0], 256, dtype=torch.long)
    with atomic(path) as scratch, scratch.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + labels)
        for chunk in split.chunks:
            file.write(chunk.tobytes())
            counts += _histogram(torch.from_numpy(chunk))
    return counts


def _histogram(images: Tensor) -> Tensor:
    """How often each value occurs in each channel: int64 (C, 256) of uint8 (N, C, H, W)."""
    channels = images.transpose(0, 1).flatten(1)
    return torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
