"""Open the splits of a prepared data set, hold out the validation part, set the augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ztw.data.dataset import Data
from ztw.data.decoded import ImageSet
from ztw.data.hold_out import drawn_images, held_out_split
from ztw.data.images import shown
from ztw.data.record import NotAsRecordedError, open_array
from ztw.data.streamed import StreamedSet
from ztw.errors import ZtwError
from ztw.progress import Note, Report
from ztw.study.settings import DataSettings, FolderSettings

# Keys of `data` that override the record unless they are null
CHOSEN = ("flip", "crop_padding", "colour_jitter", "jitter_order", "mean", "std")
NAMED = 20  # a note lists at most this many classes


def load_split(record: dict[str, Any], split: str, report: Report = lambda text: None) -> Data:
    """Open a prepared split, and prepare it again if its files are missing or altered. Images are read when needed.

    Args:
        record: from `ztw.data.prepare.prepare_dataset`, optionally with a study's flip, crop_padding,
            colour_jitter, jitter_order, mean, std and workers.
        split: "train" or "test".
        report: called when the data set is prepared again.

    Raises:
        ZtwError: if the new files differ from the record.
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
    """Open the arrays of a split; prepare the data set again if they are missing or altered."""
    names = ("text", "ends", "labels") if record.get("streamed") else ("images", "labels")
    try:
        return {name: open_array(record, split, name) for name in names}
    except NotAsRecordedError as error:
        report(Note(f"{error}; preparing the data set again"))
    _prepare_again(record, report)
    try:
        return {name: open_array(record, split, name) for name in names}
    except NotAsRecordedError as error:
        raise ZtwError(
            f"{error}, and cannot be restored: the images of {record['name']} or their decoder have changed since"
            " the study started; delete the study's data/ and run again; all networks are then trained again"
        ) from error


def _prepare_again(record: dict[str, Any], report: Report) -> None:
    # Code digests skip this import: `ztw.study.provenance.NOT_FOLLOWED`
    from ztw.data.prepare import prepare_dataset

    name, folder = record["name"], record["image_folder"]
    folders = {name: FolderSettings(**folder)} if folder else {}
    prepare_dataset(name, record["root"], folders, report)


def open_split(
    record: dict[str, Any], settings: DataSettings, split: str, report: Report = lambda text: None
) -> Data:
    """Open all of "train" or "test" with a study's augmentation and normalisation; see `load_split`."""
    given = {key: value for key in CHOSEN if (value := getattr(settings, key)) is not None}
    return load_split({**record, **given}, split, report)


def cell_splits(
    record: dict[str, Any], settings: DataSettings, seed: int, report: Report = lambda text: None
) -> dict[str, Data]:
    """Return "train", "validation" and "test" as a study defines them: the same in every job of a cell.

    Of the training images, `settings.training_images` are drawn, if the key is set. Then the validation part is held
    out from the split `settings.validation_from`.

    Args:
        record: from `ztw.data.prepare.prepare_dataset`. A record of one split gives this split and its validation part.
        report: called with classes that have no validation image.

    Raises:
        ZtwError: as `load_split`, `drawn_images` and `held_out_split`.
    """
    splits = {split: open_split(record, settings, split, report) for split in record["counts"]}
    if settings.training_images is not None and "train" in splits:
        drawn = drawn_images(splits["train"].labels, settings.training_images, seed)
        splits["train"] = splits["train"].take(drawn)
    source = splits.get(settings.validation_from)
    if source is None or not settings.validation_fraction:
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
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"validation: no image of {len(names)} of {num_classes} classes: {', '.join(map(shown, names[:NAMED]))}{more};"
        " thresholds are chosen without them. Raise data.validation_fraction, or add images of these classes"
    )
