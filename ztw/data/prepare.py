"""Making data sets ready: their files found and checked, then decoded once into uint8 arrays, or listed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.data.decode import DECODERS, Splits, decode_by_torchvision, decode_folder
from ztw.data.folders import class_stamps, list_images, stamped_files, write_listing
from ztw.data.record import read_record, write_record, write_split
from ztw.data.sources import find_files
from ztw.errors import ZtwError, unknown
from ztw.progress import Report
from ztw.study.facts import DATASETS, IMAGE_FOLDER, STREAMED_FOLDER, DatasetFacts
from ztw.study.settings import FolderSettings

DECODER = 2  # raised when decoding or what is written changes, so that old files are not reused


def prepare_dataset(
    name: str,
    root: Path | str,
    image_folders: Mapping[str, FolderSettings] | None = None,
    report: Report = lambda text: None,
) -> dict[str, Any]:
    """Make a data set ready: files found and checked by SHA-256, decoded into `root`; or, streamed, listed there.

    image_folders: name -> the user's own folder of images (train/ and test/ or val/).
    Returns the record `ztw.data.splits.load_split` reads: where its arrays are, counts, classes, mean, std, ...
    Raises ZtwError when no source has the files, one is altered, or the root cannot be written.
    """
    root = Path(root)
    facts, folder = _facts(name, image_folders or {}), (image_folders or {}).get(name)
    _check_writable(root)
    if facts.streamed:
        record = _prepare_streamed(name, facts, folder or _below(root, name, facts), root, report)
    elif folder:
        record = _prepare_folder(name, folder, root, report)
    else:
        record = _prepare_files(name, facts, root, report)
    # not properties of the decoded files, so that a corrected fact does not need decoding again
    record |= {"flip": facts.flip, "crop_padding": facts.crop_padding, "colour_jitter": facts.colour_jitter}
    if facts.mean and facts.std:
        record |= {"mean": list(facts.mean), "std": list(facts.std)}
    report(f"{record['counts']['train']} training and {record['counts']['test']} test images in {root}")
    return record


def _facts(name: str, folders: Mapping[str, FolderSettings]) -> DatasetFacts:
    """The facts of a built-in data set, or those every image folder shares."""
    if name in folders:
        return STREAMED_FOLDER if folders[name].stream else IMAGE_FOLDER
    if name not in DATASETS:
        raise unknown("data set", name, [*DATASETS, *folders])
    return DATASETS[name]


def _check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise ZtwError(
            f"data root {str(root)!r}: cannot be written ({error.strerror}); set data.root in the config,"
            " or ZTW_DATA, to a folder of yours"
        ) from error


def _prepare_files(name: str, facts: DatasetFacts, root: Path, report: Report) -> dict[str, Any]:
    """A built-in data set, from its files."""
    target = _target(root, name, facts.files or facts.digest)
    if (record := read_record(target)) is not None:
        return record
    find_files(name, facts, root, report)
    return _write_decoded(
        target, DECODERS.get(name, decode_by_torchvision)(name, facts, root, report), report
    )


def _prepare_folder(name: str, folder: FolderSettings, root: Path, report: Report) -> dict[str, Any]:
    """A user's folder, decoded again when an image of it changes."""
    images = stamped_files(Path(folder.path))
    target = _target(root, name, [folder.path, folder.size, images])
    if (record := read_record(target)) is not None:
        return record
    return _write_decoded(target, decode_folder(images, folder.size, report), report)


def _prepare_streamed(
    name: str, facts: DatasetFacts, folder: FolderSettings, root: Path, report: Report
) -> dict[str, Any]:
    """List a folder's images once; it is listed again when a class folder gains or loses a file."""
    path = Path(folder.path).absolute()
    target = _target(root, name, [str(path), class_stamps(path)])
    record = read_record(target)
    if record is None:
        report(f"listing {path}")
        listing = list_images(path, facts.classes)
        counts = {split: write_listing(target, listing, split) for split in listing}
        classes = len({name for name, _ in listing["train"][1]})
        record = write_record(target, {"classes": classes, "channels": facts.channels, "counts": counts})
    return record | {"streamed": True, "folder": str(path), "size": folder.size}


def _below(root: Path, name: str, facts: DatasetFacts) -> FolderSettings:
    """Where a built-in streamed data set is; raises ZtwError when it is not there."""
    path = root / name
    if not path.is_dir():
        raise ZtwError(
            f"{name}: not found. By hand: put train/<class>/ and val/<class>/ with its images below {path}"
            f" (from {facts.source})"
        )
    return FolderSettings(path=str(path), size=int(facts.size or 0), stream=True)


def _target(root: Path, name: str, key: Any) -> Path:
    """The folder of what is decoded under `key`: another key, another folder."""
    text = json.dumps([DECODER, name, key], sort_keys=True)
    return root / "decoded" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _write_decoded(target: Path, splits: Splits, report: Report) -> dict[str, Any]:
    report("decoding")
    try:
        pixels = {split: write_split(target, split, part) for split, part in splits.items()}
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # what is there without a record may be gigabytes
        raise
    train = splits["train"]
    mean, std = _statistics(pixels["train"])
    channels, size, _ = train.shape
    facts = {
        "classes": int(train.labels.max()) + 1,
        "channels": channels,
        "size": size,
        "counts": {split: len(part.labels) for split, part in splits.items()},
        "mean": mean,
        "std": std,
    }
    return write_record(target, facts)


def _statistics(counts: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], to four digits; counts: of `write_split`."""
    counts = counts.double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values / counts.sum(1)
    variance = counts @ values.square() / counts.sum(1) - mean.square()
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in variance.sqrt().tolist()]
