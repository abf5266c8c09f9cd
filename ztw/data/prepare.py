"""Making data sets ready: their files found and checked, then decoded once into uint8 arrays, or listed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.catalogue.datasets import DATASETS, IMAGE_FOLDER, STREAMED_FOLDER, DatasetFacts
from ztw.catalogue.parts import PLUGINS, own
from ztw.data.checksums import images_sha256
from ztw.data.decode import DECODERS, Splits, decode_folder
from ztw.data.folders import Listed, list_images, write_listing
from ztw.data.images import UnreadableImagesError, check_images, shown
from ztw.data.record import OF_ALL, joined, read_record, write_record, write_split
from ztw.data.sources import find_files
from ztw.errors import ZtwError, unknown
from ztw.files import open_locked
from ztw.progress import Note, Report
from ztw.study.settings import FolderSettings

DECODER = 4  # raised when decoding or what is written changes, so that old files are not reused
CONSTANT = 1e-4  # a channel's standard deviation below this is rounded to 0


def prepare_dataset(
    name: str,
    root: Path | str,
    image_folders: Mapping[str, FolderSettings] | None = None,
    report: Report = lambda text: None,
) -> dict[str, Any]:
    """Make a data set ready: files found and checked by SHA-256, decoded into `root`; or, streamed, listed there.

    image_folders: name -> the user's own folder of images (train/ and test/ or val/). Every image is checked,
    and what is left out is said to `report`. Several calls at once do it once.
    Returns the record (`ztw.data.record`) that `ztw.data.splits.load_split` reads: the same as long as the
    images are the same, wherever and whenever they were decoded.
    Raises ZtwError when no source has the files, one is altered, or the root cannot be written, and
    UnreadableImagesError naming all images that cannot be used.
    """
    root = Path(root).expanduser().absolute()
    facts, folder = _facts(name, image_folders or {}), (image_folders or {}).get(name)
    _check_writable(root)
    with open_locked(root / f".prepare-{name}.lock", report):
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
    if name in own("dataset"):
        record |= {"plugins": dict(PLUGINS)}
    record |= {"name": name, "root": str(root), "image_folder": _described(folder)}
    report(
        f"{record['counts']['train']} training and {record['counts']['test']} test images in {shown(root)}"
    )
    return record


def _described(folder: FolderSettings | None) -> dict[str, Any] | None:
    """What a record says of a folder of the user's: not the hash, so that naming it trains nothing again."""
    return folder.model_dump(exclude={"sha256"}) if folder else None


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
            f"data root {shown(root)!r}: cannot be written ({error.strerror}); set data.root in the config,"
            " or ZTW_DATA, to a folder of yours"
        ) from error


def _prepare_files(name: str, facts: DatasetFacts, root: Path, report: Report) -> dict[str, Any]:
    """A built-in data set, from its files."""
    target = _target(root, name, facts.files or facts.digest)
    if (record := read_record(target)) is not None:
        return record
    find_files(name, facts, root, report)
    splits = DECODERS[name](name, facts, root, report)
    with _removed_on_failure([target]):
        return write_record(target, _write_decoded(dict.fromkeys(splits, target), splits, report))


def _prepare_folder(name: str, folder: FolderSettings, root: Path, report: Report) -> dict[str, Any]:
    """A user's folder; a split is decoded again when an image of it changes."""
    listing = list_images(_path(folder), None, report)
    targets = _targets(root, name, folder.size, listing)
    records = {split: read_record(target) for split, target in targets.items()}
    missing = [split for split, record in records.items() if record is None]
    with _removed_on_failure([targets[split] for split in missing]):
        splits = decode_folder({split: listing[split] for split in missing}, folder.size, report)
        facts = _write_decoded(targets, splits, report) if missing else {}
        for split in missing:
            records[split] = write_record(
                targets[split], {**facts, "counts": {split: facts["counts"][split]}}
            )
    record = joined([record for record in records.values() if record])
    return record | _check_images(name, folder, listing, targets, report)


def _prepare_streamed(
    name: str, facts: DatasetFacts, folder: FolderSettings, root: Path, report: Report
) -> dict[str, Any]:
    """Check and list a folder's images once; a split is listed again when an image of it changes."""
    path = _path(folder)
    report(f"listing {shown(path)}")
    listing = list_images(path, facts.num_classes, report)
    targets = _targets(root, name, "streamed", listing)
    records = {split: read_record(target) for split, target in targets.items()}
    missing = [split for split, record in records.items() if record is None]
    paths = chain.from_iterable(listing[split].paths() for split in missing)
    if problems := check_images(paths, sum(len(listing[split].rows) for split in missing), report):
        raise UnreadableImagesError(problems)
    for split in missing:
        write_listing(targets[split], listing[split], split)
        facts_of = {"channels": facts.channels, "counts": {split: len(listing[split].rows)}}
        records[split] = write_record(targets[split], facts_of | _named(listing[split].class_names))
    record = joined([record for record in records.values() if record])
    if folder.sha256 is not None:
        record |= _check_images(name, folder, listing, targets, report)
    return record | {"streamed": True, "folder": str(path), "size": folder.size}


def _check_images(
    name: str,
    folder: FolderSettings,
    listing: Mapping[str, Listed],
    targets: Mapping[str, Path],
    report: Report,
) -> dict[str, str]:
    """What a record says of all images of a folder; raises ZtwError when they are not those that a study names."""
    found = images_sha256(listing, targets, report)
    if folder.sha256 not in (None, found):
        raise ZtwError(
            f"data.image_folders.{name}.sha256: expected {folder.sha256}, but the images in {shown(_path(folder))}"
            f" have {found}: they are others, or have other names"
        )
    report(f"SHA-256 of all images of {name}: {found}")
    return {OF_ALL: found}


def _path(folder: FolderSettings) -> Path:
    return Path(folder.path).expanduser().absolute()


def _below(root: Path, name: str, facts: DatasetFacts) -> FolderSettings:
    """Where a built-in streamed data set is; raises ZtwError when it is not there."""
    path = root / name
    if not path.is_dir():
        raise ZtwError(
            f"{name}: not found. By hand: put train/<class>/ and val/<class>/ with its images below {shown(path)}"
            f" (from {facts.source})"
        )
    return FolderSettings(path=str(path), size=int(facts.size or 0), stream=True)


def _targets(root: Path, name: str, size: int | str, listing: Mapping[str, Listed]) -> dict[str, Path]:
    """Where each split of a folder is kept: elsewhere when one of its images, or their size, changes."""
    return {
        split: _target(root, name, [size, split, shown(listed.place.name), listed.stamp])
        for split, listed in listing.items()
    }


def _target(root: Path, name: str, key: Any) -> Path:
    """The folder of what is decoded under `key`: another key, another folder."""
    text = json.dumps([DECODER, name, key], sort_keys=True)
    return root / "decoded" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@contextmanager
def _removed_on_failure(targets: list[Path]) -> Iterator[None]:
    """What is there without a record may be gigabytes."""
    try:
        yield
    except BaseException:
        for target in targets:
            shutil.rmtree(target, ignore_errors=True)
        raise


def _write_decoded(targets: Mapping[str, Path], splits: Splits, report: Report) -> dict[str, Any]:
    """Write the images and labels of splits, each into its folder; returns what is known of the data set.

    Raises UnreadableImagesError for all splits together. mean and std are there where the training images are.
    """
    report("decoding")
    pixels: dict[str, Tensor] = {}
    problems: list[str] = []
    for split, part in splits.items():
        try:
            pixels[split] = write_split(targets[split], split, part)
        except UnreadableImagesError as error:
            problems += error.problems
        except ZtwError:  # Tiny ImageNet's digest, which an unreadable image changes
            if not problems:
                raise
    if problems:
        raise UnreadableImagesError(problems)
    part = next(iter(splits.values()))
    channels, size, _ = part.shape
    names = part.class_names or [str(label) for label in range(int(part.labels.max()) + 1)]
    counts = {split: len(part.labels) for split, part in splits.items()}
    facts = {**_named(names), "channels": channels, "size": size, "counts": counts}
    return facts | (_statistics(pixels["train"], report) if "train" in pixels else {})


def _named(class_names: list[str]) -> dict[str, Any]:
    """What a record says of the classes."""
    return {"num_classes": len(class_names), "class_names": class_names}


def _statistics(counts: Tensor, report: Report) -> dict[str, list[float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], to four digits; counts: of `write_split`.

    A channel that is constant gets a standard deviation of 1: it becomes 0, and the others train.
    """
    counts = counts.double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values / counts.sum(1)
    # not E[x^2] - E[x]^2, which rounding makes negative for a constant
    variance = (counts * (values - mean[:, None]).square()).sum(1) / counts.sum(1)
    std = variance.sqrt()
    for channel in (std < CONSTANT).nonzero().flatten().tolist():
        report(
            Note(
                f"channel {channel} of 0..{len(std) - 1} is constant over the training images (std"
                f" {float(std[channel]):.2g}): it is normalised by 1, and tells the network nothing"
            )
        )
        std[channel] = 1.0
    return {"mean": [round(v, 4) for v in mean.tolist()], "std": [round(v, 4) for v in std.tolist()]}
