"""The splits of a prepared data set, as a study wants them: opened, held out, augmented."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ztw.data.dataset import Data
from ztw.data.decoded import ImageSet
from ztw.errors import ZtwError
from ztw.files import sha256
from ztw.tensors import read_tensors

Settings = Any
Cell = Any


def load_split(prepared: dict[str, Any], split: str) -> Data:
    """Open one split that `ztw.fetch.prepare_dataset` has made ready; images are read when they are used.

    prepared: the record `prepare_dataset` returned, perhaps with a study's own flip, crop_padding,
    colour_jitter, mean, std, workers; split: "train" or "test".
    Raises ZtwError when the decoded file is missing, truncated or not what the record says.
    """
    path = Path(prepared["decoded"][split])
    hint = "delete it and the study's data/*.json, and run again to decode it anew"
    tensors = read_tensors(path, hint)  # memory-mapped
    if not is_unaltered(path, prepared, split):
        raise ZtwError(f"{path}: altered since it was decoded (its SHA-256 differs); {hint}")
    common = {
        "labels": tensors["labels"],
        "classes": prepared["classes"],
        "mean": tuple(prepared["mean"]),
        "std": tuple(prepared["std"]),
        "flip": prepared["flip"],
        "colour_jitter": prepared.get("colour_jitter", 0.0),
    }
    if prepared.get("streamed"):
        from ztw.data.streamed import StreamedSet

        files = (tensors["text"], tensors["ends"])
        place, size, workers = Path(prepared["folder"]), prepared["size"], prepared.get("workers")
        return StreamedSet(folder=place, files=files, size=size, workers=workers, **common)
    return ImageSet(stored=tensors["images"], crop_padding=prepared["crop_padding"], **common)


def stamp(path: Path) -> list[int]:
    """Size in bytes and time of change in ns: equal to what was recorded, the file needs no hashing."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def is_unaltered(path: Path, record: dict[str, Any], split: str) -> bool:
    """Whether a decoded file is what its record says, by its stamp or else by its SHA-256."""
    return record.get("stamps", {}).get(split) == stamp(path) or sha256(path) == record["sha256"][split]


def held_out_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split training samples into (train, validation) indices, stratified by class and seeded.

    labels: int64 (N,); fraction: share of each class that is held out, in (0, 1).
    Raises ZtwError when the fraction leaves either part empty.
    """
    if not 0 < fraction < 1:
        raise ZtwError(f"validation fraction {fraction!r}: must lie strictly between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out[members[: round(fraction * len(members))]] = True
    if held_out.all() or not held_out.any():
        raise ZtwError(f"validation fraction {fraction!r} of {len(labels)} images leaves a part empty")
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def _split(prepared: dict, split: str, settings: Settings) -> Data:
    """One split with the study's own choice of normalisation and augmentation."""
    data = load_split(prepared, split)
    known = {field.name for field in dataclasses.fields(cast(Any, data))}
    chosen = ("flip", "crop_padding", "colour_jitter", "mean", "std")
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in settings["data"].items()
        if key in chosen and key in known and value is not None
    }
    changed: Data = dataclasses.replace(cast(Any, data), **given)
    return changed


def data_parts(prepared: dict, cell: Cell, settings: Settings) -> dict[str, Data]:
    """ "train", "validation" and "test": the same split in every job of a cell.

    The validation part is taken from the training images, or from the test images where weights that
    were not trained here have seen all of the former.
    """
    parts = {split: _split(prepared, split, settings) for split in ("train", "test")}
    source = settings["data"]["validation_from"]
    fraction = settings["data"]["validation_fraction"]
    rest, held_out = held_out_split(parts[source].labels, fraction, seed=int(cell["seed"]))
    return {**parts, source: parts[source].take(rest), "validation": parts[source].take(held_out)}
