"""What is kept of a prepared data set: .npy files, read through a memory map, and a record of what they are.

A record is written twice: beside the files, and in a study. It says of the whole set `name`, `num_classes`,
`class_names`, `channels`, `size`, `mean`, `std`, ..., and of each split what PER_SPLIT lists. The files are compared
with their SHA-256s whenever a job opens them: a disk changes bytes without changing a time, and hashing takes a second
or so for a gigabyte.
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

# of a record: split -> how many images, split -> the folder of its files, file -> SHA-256
PER_SPLIT = ("counts", "decoded", "sha256")
# The hash of the images of all splits is in the record of "test", so that no training depends on it
OF_ALL = "images_sha256"


class NotAsRecordedError(ZtwError):
    """A file of a prepared data set is missing, truncated or altered."""


@dataclass
class Split:
    """One split on its way into files: labels int64 (N,); the images come in chunks, uint8 (B, C, size, size).

    class_names: in the order of the labels, None where they are but numbers.
    """

    labels: Tensor
    shape: tuple[int, int, int]  # (C, size, size)
    chunks: Iterable[np.ndarray]
    class_names: list[str] | None = None


def write_split(folder: Path, name: str, split: Split) -> Tensor:
    """Write a split's images and labels; returns how often each value occurs in each channel, int64 (C, 256).

    Images are written chunk by chunk, never all in memory, and not through a memory map: a disk that
    fills up under one kills the process instead of raising OSError.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(split.labels), *split.shape)}
    counts = torch.zeros(split.shape[0], 256, dtype=torch.long)
    for left in folder.glob(f".{name}-*.npy.*"):  # of a job that was killed: perhaps gigabytes
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
    """Write a tensor as a .npy file, atomically."""
    with atomic(path) as scratch, scratch.open("wb") as file:
        np.save(file, array.numpy())


def open_array(record: dict[str, Any], split: str, what: str) -> Tensor:
    """An array of a prepared data set, memory-mapped: what is read of it comes from the file when it is used.

    record: of a study; what: "images", "labels", ...
    Raises NotAsRecordedError when the file is missing, truncated or altered.
    """
    path = Path(record["decoded"][split]) / f"{split}-{what}.npy"
    if not path.exists():
        raise NotAsRecordedError(f"{path}: missing")
    if sha256(path) != record["sha256"][path.name]:
        raise NotAsRecordedError(f"{path}: altered or truncated since it was written (its SHA-256 differs)")
    return torch.from_numpy(
        np.load(path, mmap_mode="c", allow_pickle=False)
    )  # private: torch takes no read-only arrays


def write_record(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write record.json of the arrays in `folder`: facts, and each file's SHA-256.

    facts: with "counts" of the splits that are there. Returns it as a study has it: with "decoded", the
    folder, which is not written, for a data root may be moved.
    """
    files = sorted(folder.glob("*.npy"))
    record = {**facts, "sha256": {path.name: sha256(path) for path in files}}
    write_json(folder / "record.json", record)
    return _with_folder(record, folder)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `write_record` returned, if its files are still what was written, else None."""
    if not (record := _beside(folder)):
        return None
    record.pop("stamps", None)  # of records that earlier versions wrote
    for name, expected in record["sha256"].items():
        if not (folder / name).exists() or sha256(folder / name) != expected:
            return None
    return _with_folder(record, folder)


def _with_folder(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**record, "decoded": {split: str(folder) for split in record["counts"]}}


def joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record of several splits: facts of the whole set from the first that has them, where they are told apart."""
    per_split = {key: {k: v for record in records for k, v in record[key].items()} for key in PER_SPLIT}
    return {**records[-1], **records[0], **per_split}


def read_study_record(files: Sequence[Path | str]) -> dict[str, Any]:
    """The record of a study, from one file of each split, the training images' first.

    Raises ZtwError naming a file that is missing or broken.
    """
    records = [read_json(file) for file in files]
    return joined(records) if len(records) > 1 else records[0]


def of_split(record: dict[str, Any], split: str) -> dict[str, Any]:
    """The part of a record that one split's images decide."""
    found = {key: value for key, value in record.items() if key != OF_ALL or split == "test"}
    return found | {
        "counts": {split: record["counts"][split]},
        "decoded": {split: record["decoded"][split]},
        "sha256": {file: s for file, s in record["sha256"].items() if file.startswith(f"{split}-")},
    }


def _beside(folder: Path) -> dict[str, Any]:
    """The record that was written beside the files of a folder, {} where there is none that can be read."""
    try:
        return read_json(folder / "record.json")
    except ZtwError:
        return {}
