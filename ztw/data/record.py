"""What is kept of a prepared data set: .npy files, read through a memory map, and a record of what they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.files import atomic, read_json, sha256, write_json

HINT = "delete it and the study's data/*.json, and run again"


@dataclass
class Split:
    """One split on its way into files: labels int64 (N,); the images come in chunks, uint8 (B, C, size, size)."""

    labels: Tensor
    shape: tuple[int, int, int]  # (C, size, size)
    chunks: Iterable[np.ndarray]


def write_split(folder: Path, name: str, split: Split) -> Tensor:
    """Write a split's images and labels; returns how often each value occurs in each channel, int64 (C, 256).

    Images are written chunk by chunk, never all in memory, and not through a memory map: a disk that
    fills up under one kills the process instead of raising OSError.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(split.labels), *split.shape)}
    counts = torch.zeros(split.shape[0], 256, dtype=torch.long)
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


def open_array(record: dict[str, Any], name: str) -> Tensor:
    """An array of a prepared data set, memory-mapped: what is read of it comes from the file when it is used.

    record: of `read_record` or `write_record`; name: of the file, without .npy.
    Raises ZtwError when the file is missing, truncated or altered.
    """
    path = Path(record["decoded"]) / f"{name}.npy"
    try:
        if not _is_unaltered(path, record):
            raise ZtwError(f"{path}: altered or truncated since it was decoded (its SHA-256 differs); {HINT}")
        return torch.from_numpy(np.load(path, mmap_mode="c"))  # private: torch takes no read-only arrays
    except OSError as error:
        raise ZtwError(f"{path}: missing, or cannot be read ({error.strerror}); {HINT}") from error


def write_record(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write record.json of the arrays in `folder`: facts, and each file's SHA-256 and stamp.

    Returns it with "decoded", the folder, which is not written: a data root may be moved.
    """
    files = sorted(folder.glob("*.npy"))
    hashes = {path.name: sha256(path) for path in files}
    record = {**facts, "sha256": hashes, "stamps": {path.name: _stamp(path) for path in files}}
    write_json(folder / "record.json", record)
    return {**record, "decoded": str(folder)}


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `write_record` returned, if its files are still what was written, else None."""
    if not (folder / "record.json").exists():
        return None
    record = read_json(folder / "record.json")
    files = [folder / name for name in record["sha256"]]
    if not all(path.exists() and _is_unaltered(path, record) for path in files):
        return None
    stamps = {path.name: _stamp(path) for path in files}
    if record["stamps"] != stamps:  # files that were moved: spare the next hashing
        record["stamps"] = stamps
        write_json(folder / "record.json", record)
    return {**record, "decoded": str(folder)}


def _stamp(path: Path) -> list[int]:
    """Size in bytes and time of change in ns: equal to what was recorded, the file needs no hashing."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _is_unaltered(path: Path, record: dict[str, Any]) -> bool:
    """Whether a file is what the record says, by its stamp or else by its SHA-256."""
    return record["stamps"][path.name] == _stamp(path) or sha256(path) == record["sha256"][path.name]
