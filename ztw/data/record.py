"""Write and read the files of a prepared data set: memory-mapped .npy arrays and a record of their metadata.

The record exists twice: beside the arrays and in a study. It holds metadata of the data set (`name`, `num_classes`,
`class_names`, `channels`, `size`, `mean`, `std`, ...) and of each split (PER_SPLIT). Every job checks the SHA-256 of
the arrays that it opens, because a disk error changes no time stamp. Hashing takes about a second per gigabyte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.files import atomic, read_json, sha256, write_json

# Keys of a record: split -> number of images, split -> folder of its arrays, file -> SHA-256
PER_SPLIT = ("counts", "decoded", "sha256")
# SHA-256 of the images of all splits; only in the record of "test", so that no training depends on it
OF_ALL = "images_sha256"


class NotAsRecordedError(ZtwError):
    """A file of a prepared data set is missing, truncated or altered."""


@dataclass
class Split:
    """A split to write.

    Args:
        labels: int64 (N,).
        chunks: the images, uint8 (B, C, size, size).
        class_names: in the order of the labels; None = the labels are the names.
    """

    labels: Tensor
    shape: tuple[int, int, int]
    chunks: Iterable[np.ndarray]
    class_names: list[str] | None = None


def write_split(folder: Path, name: str, split: Split) -> Tensor:
    """Write a split's images and labels.

    Writes chunk by chunk to save memory, not through a memory map: on a full disk, a memory map kills the process
    instead of raising OSError.

    Returns:
        A histogram of the pixel values of each channel, int64 (C, 256).
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(split.labels), *split.shape)}
    counts = torch.zeros(split.shape[0], 256, dtype=torch.long)
    for left in folder.glob(f".{name}-*.npy.*"):  # incomplete files of a killed job may take gigabytes
        left.unlink()
    with atomic(folder / f"{name}-images.npy") as scratch, scratch.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in split.chunks:
            file.write(np.ascontiguousarray(chunk).data)
            counts += _histogram(torch.from_numpy(chunk))
    write_array(folder / f"{name}-labels.npy", split.labels)
    return counts


def _histogram(images: Tensor) -> Tensor:
    channels = images.transpose(0, 1).flatten(1)
    return torch.stack([torch.bincount(channel, minlength=256) for channel in channels])


def write_array(path: Path, array: Tensor) -> None:
    """Write a tensor to a .npy file atomically."""
    with atomic(path) as scratch, scratch.open("wb") as file:
        np.save(file, array.numpy())


def open_array(record: dict[str, Any], split: str, what: str) -> Tensor:
    """Memory-map an array of a prepared data set.

    Args:
        record: from `read_study_record`.
        split: "train" or "test".
        what: "images", "labels", "text" or "ends".

    Raises:
        NotAsRecordedError: if the file is missing, truncated or altered.
    """
    path = Path(record["decoded"][split]) / f"{split}-{what}.npy"
    if not path.exists():
        raise NotAsRecordedError(f"{path}: missing")
    if sha256(path) != record["sha256"][path.name]:
        raise NotAsRecordedError(f"{path}: altered or truncated (its SHA-256 differs)")
    # Mode "c" (copy on write), because torch warns of read-only arrays
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))  # noqa: TID251


def write_record(folder: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Write record.json for the arrays in `folder`: metadata and the SHA-256 of each file.

    Args:
        metadata: keys of the data set, with the "counts" of the splits in the folder.

    Returns:
        The record with "decoded", the folder of each split. The file lacks it, because a data root may move.
    """
    files = sorted(folder.glob("*.npy"))
    record = {**metadata, "sha256": {path.name: sha256(path) for path in files}}
    write_json(folder / "record.json", record)
    return _with_folder(record, folder)


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read a record of `write_record`; None if a file is missing or altered."""
    try:
        record = read_json(folder / "record.json")
    except ZtwError:
        return None
    record.pop("stamps", None)  # written by earlier versions
    for name, expected in record["sha256"].items():
        if not (folder / name).exists() or sha256(folder / name) != expected:
            return None
    return _with_folder(record, folder)


def _with_folder(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**record, "decoded": {split: str(folder) for split in record["counts"]}}


def joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join records of several splits; other keys come from the first record that has them."""
    per_split = {key: {k: v for record in records for k, v in record[key].items()} for key in PER_SPLIT}
    return {**records[-1], **records[0], **per_split}


def read_study_record(files: Sequence[Path | str]) -> dict[str, Any]:
    """Read the record of a data set in a study.

    Args:
        files: one file of each split, "train" first.

    Raises:
        ZtwError: if a file is missing or broken.
    """
    records = [read_json(file) for file in files]
    return joined(records) if len(records) > 1 else records[0]


def of_split(record: dict[str, Any], split: str) -> dict[str, Any]:
    """Return a record of one split only."""
    found = {key: value for key, value in record.items() if key != OF_ALL or split == "test"}
    return found | {
        "counts": {split: record["counts"][split]},
        "decoded": {split: record["decoded"][split]},
        "sha256": {file: s for file, s in record["sha256"].items() if file.startswith(f"{split}-")},
    }
