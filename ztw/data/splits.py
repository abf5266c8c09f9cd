"""The splits of a prepared data set, as a study wants them: opened, held out, augmented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.data.dataset import Data
from ztw.data.decoded import ImageSet
from ztw.data.record import open_array
from ztw.data.streamed import StreamedSet
from ztw.errors import ZtwError
from ztw.study.settings import DataSettings

# What a study may choose; where it is null the record says it
CHOSEN = ("flip", "crop_padding", "colour_jitter", "jitter_order", "mean", "std")


def load_split(record: dict[str, Any], split: str) -> Data:
    """Open one split that `ztw.data.prepare.prepare_dataset` has made ready; images are read when they are used.

    record: what `prepare_dataset` returned, perhaps with a study's flip, crop_padding, colour_jitter,
    jitter_order, mean, std, workers; split: "train" or "test".
    Raises ZtwError when a file of it is missing, truncated or not what the record says.
    """
    streamed = record.get("streamed", False)
    names = ("text", "ends", "labels") if streamed else ("images", "labels")
    arrays = {name: open_array(record, f"{split}-{name}") for name in names}
    common = {
        "labels": arrays["labels"],
        "classes": record["classes"],
        "mean": tuple(record["mean"]),
        "std": tuple(record["std"]),
        "flip": record["flip"],
        "colour_jitter": record["colour_jitter"],
        "jitter_order": record.get("jitter_order", "fixed"),
    }
    if not streamed:
        return ImageSet(stored=arrays["images"], crop_padding=record["crop_padding"], **common)
    folder, files = Path(record["folder"]), (arrays["text"], arrays["ends"])
    return StreamedSet(
        folder=folder, files=files, size=record["size"], workers=record.get("workers"), **common
    )


def open_split(record: dict[str, Any], settings: DataSettings, split: str) -> Data:
    """All of "train" or "test", augmented and normalised as a study wants it; raises ZtwError as `load_split`."""
    given = {key: value for key in CHOSEN if (value := getattr(settings, key)) is not None}
    return load_split({**record, **given}, split)


def cell_splits(record: dict[str, Any], settings: DataSettings, seed: int) -> dict[str, Data]:
    """ "train", "validation" and "test" as a study wants them: the same in every job of a cell.

    record: of `ztw.data.prepare.prepare_dataset`. The validation part is taken from the training images,
    or from the test images where weights that were not trained here have seen all of the former.
    Raises ZtwError as `load_split` and `held_out_split` do.
    """
    splits = {split: open_split(record, settings, split) for split in ("train", "test")}
    source = splits[settings.validation_from]
    rest, held_out = held_out_split(source.labels, settings.validation_fraction, seed)
    return {**splits, settings.validation_from: source.take(rest), "validation": source.take(held_out)}


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
