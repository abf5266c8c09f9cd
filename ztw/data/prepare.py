"""Prepare data sets: find and check their files, then decode them once to uint8 arrays, or list them if streamed."""

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

from ztw.catalogue.datasets import DATASETS, IMAGE_FOLDER, STREAMED_FOLDER, DatasetMetadata
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

DECODER = 4  # version of the decoded files; raise it when decoding changes
CONSTANT = 1e-4  # a channel with a smaller standard deviation is treated as constant


def prepare_dataset(
    name: str,
    root: Path | str,
    image_folders: Mapping[str, FolderSettings] | None = None,
    report: Report = lambda text: None,
) -> dict[str, Any]:
    """Prepare a data set: check its files by SHA-256 and decode them below `root`, or list them if streamed.

    Parallel calls prepare the data set once.

    Args:
        name: a built-in or registered data set, or a name in `image_folders`.
        root: the folder for data sets.
        image_folders: name -> the user's folder of images (train/ and test/ or val/); every image is checked.
        report: called with the progress and the files that are left out.

    Returns:
        The record that `ztw.data.splits.load_split` reads. Later calls return an equal record unless the images change.

    Raises:
        ZtwError: if no source has the files, a file is altered, or the root cannot be written.
        UnreadableImagesError: with all images that cannot be used.
    """
    root = Path(root).expanduser().absolute()
    metadata, folder = _metadata(name, image_folders or {}), (image_folders or {}).get(name)
    _check_writable(root)
    with open_locked(root / f".prepare-{name}.lock", report):
        if metadata.streamed:
            record = _prepare_streamed(name, metadata, folder or _below(root, name, metadata), root, report)
        elif folder:
            record = _prepare_folder(name, folder, root, report)
        else:
            record = _prepare_files(name, metadata, root, report)
    # Kept outside of the decoded files, so that a corrected value needs no decoding
    record |= {key: getattr(metadata, key) for key in ("flip", "crop_padding", "colour_jitter")}
    if metadata.mean and metadata.std:
        record |= {"mean": list(metadata.mean), "std": list(metadata.std)}
    if name in own("dataset"):
        record |= {"plugins": dict(PLUGINS)}
    # Without `sha256`, so that a study that adds the key trains nothing again
    described = folder.model_dump(exclude={"sha256"}) if folder else None
    record |= {"name": name, "root": str(root), "image_folder": described}
    report(
        f"{record['counts']['train']} training and {record['counts']['test']} test images in {shown(root)}"
    )
    return record


def _metadata(name: str, folders: Mapping[str, FolderSettings]) -> DatasetMetadata:
    """Return the metadata of a data set, the same for all image folders."""
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
            f"data root {shown(root)!r}: cannot be written ({error.strerror}); set data.root in the config, or"
            " ZTW_DATA, to a folder that you can write to"
        ) from error


def _prepare_files(name: str, metadata: DatasetMetadata, root: Path, report: Report) -> dict[str, Any]:
    target = _target(root, name, metadata.files or metadata.digest)
    if (record := read_record(target)) is not None:
        return record
    find_files(name, metadata, root, report)
    splits = DECODERS[name](name, metadata, root, report)
    with _removed_on_failure([target]):
        return write_record(target, _write_decoded(dict.fromkeys(splits, target), splits, report))


def _prepare_folder(name: str, folder: FolderSettings, root: Path, report: Report) -> dict[str, Any]:
    """Decode an image folder; a split is decoded again if its images change."""
    listing = list_images(_path(folder), None, report)
    targets = _targets(root, name, folder.size, listing)
    records = {split: read_record(target) for split, target in targets.items()}
    missing = [split for split, record in records.items() if record is None]
    with _removed_on_failure([targets[split] for split in missing]):
        splits = decode_folder({split: listing[split] for split in missing}, folder.size, report)
        metadata = _write_decoded(targets, splits, report) if missing else {}
        for split in missing:
            records[split] = write_record(
                targets[split], {**metadata, "counts": {split: metadata["counts"][split]}}
            )
    record = joined([record for record in records.values() if record])
    return record | _check_images(name, folder, listing, targets, report)


def _prepare_streamed(
    name: str, metadata: DatasetMetadata, folder: FolderSettings, root: Path, report: Report
) -> dict[str, Any]:
    """Check and list an image folder; a split is listed again if its images change."""
    path = _path(folder)
    report(f"listing {shown(path)}")
    listing = list_images(path, metadata.num_classes, report)
    targets = _targets(root, name, "streamed", listing)
    records = {split: read_record(target) for split, target in targets.items()}
    missing = [split for split, record in records.items() if record is None]
    paths = chain.from_iterable(listing[split].paths() for split in missing)
    if problems := check_images(paths, sum(len(listing[split].rows) for split in missing), report):
        raise UnreadableImagesError(problems)
    for split in missing:
        write_listing(targets[split], listing[split], split)
        metadata_of = {"channels": metadata.channels, "counts": {split: len(listing[split].rows)}}
        records[split] = write_record(targets[split], metadata_of | _named(listing[split].class_names))
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
    """Hash all images of a folder and compare the hash with the study's."""
    found = images_sha256(listing, targets, report)
    if folder.sha256 not in (None, found):
        raise ZtwError(
            f"data.image_folders.{name}.sha256: expected {folder.sha256}, but the images in {shown(_path(folder))}"
            f" have {found}: images or their names have changed; correct the folder or the key"
        )
    report(f"SHA-256 of all images of {name}: {found}")
    return {OF_ALL: found}


def _path(folder: FolderSettings) -> Path:
    return Path(folder.path).expanduser().absolute()


def _below(root: Path, name: str, metadata: DatasetMetadata) -> FolderSettings:
    """Find the folder of a built-in streamed data set."""
    path = root / name
    if not path.is_dir():
        raise ZtwError(
            f"{name}: not found; put its images into train/<class>/ and val/<class>/ below {shown(path)}"
            f" (from {metadata.source})"
        )
    return FolderSettings(path=str(path), size=int(metadata.size or 0), stream=True)


def _targets(root: Path, name: str, size: int | str, listing: Mapping[str, Listed]) -> dict[str, Path]:
    """Return the folder of each decoded split; it depends on the images and their size."""
    return {
        split: _target(root, name, [size, split, shown(listed.place.name), listed.stamp])
        for split, listed in listing.items()
    }


def _target(root: Path, name: str, key: Any) -> Path:
    """Return the folder of decoded files, named by a hash of `key`."""
    text = json.dumps([DECODER, name, key], sort_keys=True)
    return root / "decoded" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@contextmanager
def _removed_on_failure(targets: list[Path]) -> Iterator[None]:
    """Remove the folders if the block fails, because incomplete files may take gigabytes."""
    try:
        yield
    except BaseException:
        for target in targets:
            shutil.rmtree(target, ignore_errors=True)
        raise


def _write_decoded(targets: Mapping[str, Path], splits: Splits, report: Report) -> dict[str, Any]:
    """Write the images and labels of splits, and return the metadata; mean and std only if "train" is one of them."""
    report("decoding")
    pixels: dict[str, Tensor] = {}
    problems: list[str] = []
    for split, part in splits.items():
        try:
            pixels[split] = write_split(targets[split], split, part)
        except UnreadableImagesError as error:
            problems += error.problems
        except ZtwError:  # an unreadable image also changes Tiny ImageNet's digest
            if not problems:
                raise
    if problems:
        raise UnreadableImagesError(problems)
    part = next(iter(splits.values()))
    channels, size, _ = part.shape
    names = part.class_names or [str(label) for label in range(int(part.labels.max()) + 1)]
    counts = {split: len(part.labels) for split, part in splits.items()}
    metadata = {**_named(names), "channels": channels, "size": size, "counts": counts}
    return metadata | (_statistics(pixels["train"], report) if "train" in pixels else {})


def _named(class_names: list[str]) -> dict[str, Any]:
    return {"num_classes": len(class_names), "class_names": class_names}


def _statistics(counts: Tensor, report: Report) -> dict[str, list[float]]:
    """Compute mean and standard deviation per channel of pixels in [0, 1], to four digits.

    A constant channel gets a standard deviation of 1, so that normalisation makes it 0. counts: from `write_split`.
    """
    counts = counts.double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values / counts.sum(1)
    # E[x^2] - E[x]^2 can be negative for a constant channel because of rounding
    variance = (counts * (values - mean[:, None]).square()).sum(1) / counts.sum(1)
    std = variance.sqrt()
    for channel in (std < CONSTANT).nonzero().flatten().tolist():
        report(
            Note(
                f"channel {channel} of 0..{len(std) - 1} is constant over the training images (std"
                f" {float(std[channel]):.2g}): it gives the network no information; its std is set to 1"
            )
        )
        std[channel] = 1.0
    return {"mean": [round(v, 4) for v in mean.tolist()], "std": [round(v, 4) for v in std.tolist()]}
