"""The splits of a prepared data set, as a study wants them: opened, held out, augmented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ztw.data.dataset import Data
from ztw.data.decoded import ImageSet
from ztw.data.hold_out import held_out_split
from ztw.data.images import shown
from ztw.data.record import NotAsRecordedError, open_array
from ztw.data.streamed import StreamedSet
from ztw.errors import ZtwError
from ztw.progress import Note, Report
from ztw.study.settings import DataSettings, FolderSettings

# What a study may choose; where it is null the record says it
CHOSEN = ("flip", "crop_padding", "colour_jitter", "jitter_order", "mean", "std")
NAMED = 20  # classes that a note names


def load_split(record: dict[str, Any], split: str, report: Report = lambda text: None) -> Data:
    """Open one split that `ztw.data.prepare.prepare_dataset` has made ready; images are read when they are used.

    record: what `prepare_dataset` returned, perhaps with a study's flip, crop_padding, colour_jitter,
    jitter_order, mean, std, workers; split: "train" or "test". Files that are missing or altered are made again,
    which `report` hears of.
    Raises ZtwError when what is made again is not what the record says.
    """
    arrays = _arrays(record, split, report)
    common = {
        "labels": arrays["labels"],
        "num_classes": record["num_classes"],
        "mean": tuple(record["mean"]),
        "std": tuple(record["std"]),
        "flip": record["flip"],
        "colour_jitter": record["colour_jitter"],
        "jitter_order": record.get("jitter_order", "fixed"),
    }
    if "images" in arrays:
        return ImageSet(stored=arrays["images"], crop_padding=record["crop_padding"], **common)
    folder, files = Path(record["folder"]), (arrays["text"], arrays["ends"])
    return StreamedSet(
        folder=folder, files=files, size=record["size"], workers=record.get("workers"), **common
    )


def _arrays(record: dict[str, Any], split: str, report: Report) -> dict[str, Tensor]:
    """The arrays of a split, made again where they are not as recorded."""
    names = ("text", "ends", "labels") if record.get("streamed") else ("images", "labels")
    try:
        return {name: open_array(record, split, name) for name in names}
    except NotAsRecordedError as error:
        report(Note(f"{error}; making it again"))
    _prepare_again(record, report)
    try:
        return {name: open_array(record, split, name) for name in names}
    except NotAsRecordedError as error:
        raise ZtwError(
            f"{error}, and cannot be made again as it was: the images of {record['name']}, or what decodes them,"
            " changed since this study began; delete the study's data/ and run again, which trains again"
        ) from error


def _prepare_again(record: dict[str, Any], report: Report) -> None:
    """Prepare the data set of a record again, in the same place; several jobs at once do it once."""
    from ztw.data.prepare import (
        prepare_dataset,  # not followed by code digests: `ztw.study.provenance.NOT_FOLLOWED`
    )

    name, folder = record["name"], record["image_folder"]
    folders = {name: FolderSettings(**folder)} if folder else {}
    prepare_dataset(name, record["root"], folders, report)


def open_split(
    record: dict[str, Any], settings: DataSettings, split: str, report: Report = lambda text: None
) -> Data:
    """All of "train" or "test", augmented and normalised as a study wants it; raises ZtwError as `load_split`."""
    given = {key: value for key in CHOSEN if (value := getattr(settings, key)) is not None}
    return load_split({**record, **given}, split, report)


def cell_splits(
    record: dict[str, Any], settings: DataSettings, seed: int, report: Report = lambda text: None
) -> dict[str, Data]:
    """ "train", "validation" and "test" as a study wants them: the same in every job of a cell.

    record: of `ztw.data.prepare.prepare_dataset`; with one split alone, what can be had of it. The validation
    part is taken from the training images, or from the test images where weights that were not trained here
    have seen all of the former.
    Raises ZtwError as `load_split` and `held_out_split` do.
    """
    splits = {split: open_split(record, settings, split, report) for split in record["counts"]}
    source = splits.get(settings.validation_from)
    if source is None:
        return splits
    if not settings.validation_fraction:
        return splits
    rest, held_out = held_out_split(source.labels, settings.validation_fraction, seed)
    missing = sorted(set(range(record["num_classes"])) - set(source.labels[held_out].tolist()))
    if missing:
        report(
            Note(
                _without_held_out([record["class_names"][label] for label in missing], record["num_classes"])
            )
        )
    return {**splits, settings.validation_from: source.take(rest), "validation": source.take(held_out)}


def _without_held_out(names: list[str], num_classes: int) -> str:
    """What is said of classes of which the validation split has no image."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"validation: no image of {len(names)} of {num_classes} classes: {', '.join(map(shown, names[:NAMED]))}{more};"
        " thresholds are chosen without them. Raise data.validation_fraction, or add images of them"
    )
