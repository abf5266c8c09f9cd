"""Check and decode Tiny ImageNet from its original folder or zip."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch

from ztw.catalogue.datasets import DatasetMetadata
from ztw.data.archives import UNREADABLE, open_zip, read_zipped
from ztw.data.images import decode_in_threads, read_rgb
from ztw.data.record import Split
from ztw.data.sources import find_archive
from ztw.errors import ZtwError, reason
from ztw.files import is_left_behind
from ztw.progress import Report


def decode_tiny_imagenet(
    name: str, metadata: DatasetMetadata, root: Path, report: Report
) -> dict[str, Split]:
    """Decode Tiny ImageNet. Its validation images become the test split. Classes are sorted by WordNet id."""
    tree = FileTree(find_archive(name, metadata, root, report))
    files = _tiny_imagenet_files(tree)
    class_names = sorted(set(tree.read("wnids.txt").decode().split()))
    _check_counts(tree.path, files, class_names, metadata)
    digest, size = hashlib.sha256(), int(metadata.size or 0)
    splits = {}
    for split, rows in files.items():
        labels = torch.tensor([class_names.index(wnid) for _, wnid in rows])
        arguments = _tree_arguments(tree, digest, [file for file, _ in rows], size)
        chunks = decode_in_threads(_decode_exactly, arguments, len(rows), f"decoding {split}", report)
        splits[split] = Split(labels, (3, size, size), chunks, class_names)
    splits["test"].chunks = _verified(splits["test"].chunks, tree, digest, metadata.digest)
    return splits


def _tiny_imagenet_files(tree: FileTree) -> dict[str, list[tuple[str, str]]]:
    """Return split -> [(file, WordNet id)], sorted by file."""
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
    path: Path, files: dict[str, list[tuple[str, str]]], class_names: list[str], metadata: DatasetMetadata
) -> None:
    if len(class_names) != metadata.num_classes:
        raise ZtwError(f"{path}: wnids.txt lists {len(class_names)} classes, expected {metadata.num_classes}")
    for split, expected in (metadata.counts or {}).items():
        counts = Counter(wnid for _, wnid in files[split])
        if unknown := sorted(counts.keys() - set(class_names)):
            raise ZtwError(f"{path}: {split} has a class {unknown[0]} that is not in wnids.txt")
        for wnid in class_names:
            if counts[wnid] != expected:
                raise ZtwError(f"{path}: {split} has {counts[wnid]} images of {wnid}, expected {expected}")


def _tree_arguments(tree: FileTree, digest: hashlib._Hash, names: list[str], size: int) -> Iterator[tuple]:
    for name in names:
        yield BytesIO(_read(tree, name, digest)), f"{tree.path}/{name}", size


def _read(tree: FileTree, name: str, digest: hashlib._Hash) -> bytes:
    """Read a file and add "name NUL size NUL content" to the digest of the data set."""
    content = tree.read(name)
    digest.update(f"{name}\0{len(content)}\0".encode())
    digest.update(content)
    return content


def _decode_exactly(file: IO[bytes], name: str, size: int) -> np.ndarray:
    rgb = read_rgb(file, name)
    if rgb.size != (size, size):
        raise ZtwError(f"{name}: has {rgb.width} x {rgb.height} pixels, expected {size} x {size}")
    return np.asarray(rgb).transpose(2, 0, 1)


def _verified(
    chunks: Iterable[np.ndarray], tree: FileTree, digest: hashlib._Hash, expected: str | None
) -> Iterator[np.ndarray]:
    """Yield the images, then check the digest of all files."""
    yield from chunks
    for name in ("val/val_annotations.txt", "wnids.txt"):
        _read(tree, name, digest)
    if (found := digest.hexdigest()) != expected:
        raise ZtwError(
            f"{tree.path}: altered (SHA-256 of its files {found[:12]}..., expected {str(expected)[:12]}...);"
            " delete it to download it again"
        )


class FileTree:
    """Read the files below a folder, or below the single folder in a zip, by relative path.

    Raises:
        ZtwError: if a file or the zip cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = None if path.is_dir() else open_zip(path)

    def names(self) -> list[str]:
        """List all files, sorted, without files that operating systems create."""
        if self._zip is None:
            found = (Path(place, file) for place, _, files in os.walk(self.path) for file in files)
            names = [path.relative_to(self.path).as_posix() for path in found]
        else:
            prefix = f"{self.path.stem}/"
            names = [name.removeprefix(prefix) for name in self._zip.namelist() if name[-1] != "/"]
        return sorted(name for name in names if not any(map(is_left_behind, name.split("/"))))

    def read(self, name: str) -> bytes:
        """Read a file."""
        try:
            if self._zip is None:
                return (self.path / name).read_bytes()
            return read_zipped(self._zip, f"{self.path.stem}/{name}")
        except UNREADABLE as error:
            raise ZtwError(
                f"{self.path}: {name} cannot be read ({reason(error, self.path / name)}); copy the data set again"
            ) from error
