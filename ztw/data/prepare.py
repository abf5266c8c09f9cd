"""Making data sets ready: their files found and checked, then decoded once into uint8 tensors, or listed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.data.decode import DECODERS, Splits, Stamped, decode_by_torchvision, decode_folder, write_split
from ztw.data.folders import class_stamps, list_images, write_listing
from ztw.data.sources import find_files
from ztw.data.splits import is_unaltered, stamp
from ztw.errors import ZtwError
from ztw.files import read_json, sha256, write_json
from ztw.progress import Report
from ztw.study.facts import DatasetFacts, dataset_facts

DECODER = 1  # raised when decoding changes, so that old decoded files are not reused


def prepare_dataset(
    name: str,
    root: Path | str,
    image_folders: dict[str, dict[str, Any]] | None = None,
    report: Report = lambda text: None,
) -> dict[str, Any]:
    """Make a data set ready: files found and checked by SHA-256, decoded into `root`; or, streamed, listed there.

    image_folders: name -> {path, size, stream} of the user's own folders (train/ and test/ or val/).
    Returns the record `ztw.data.load_split` reads: decoded files, counts, classes, mean, std, ...
    Raises ZtwError when no source has the files, one is altered, or the root cannot be written.
    """
    root = Path(root)
    facts = dataset_facts(name, image_folders)
    _check_writable(root)
    if facts.streamed:
        record = _prepare_streamed(name, facts, _streamed_folder(name, root, image_folders), root, report)
    else:
        record = _prepare_decoded(name, facts, (image_folders or {}).get(name), root, report)
    # not properties of the decoded files, so that a corrected fact does not need decoding anew
    record |= {"flip": facts.flip, "crop_padding": facts.crop_padding, "colour_jitter": facts.colour_jitter}
    if facts.mean and facts.std:
        record |= {"mean": list(facts.mean), "std": list(facts.std)}
    report(f"{record['counts']['train']} training and {record['counts']['test']} test images in {root}")
    return record


def _prepare_decoded(
    name: str, facts: DatasetFacts, folder: dict[str, Any] | None, root: Path, report: Report
) -> dict[str, Any]:
    own = {key: folder[key] for key in ("path", "size")} if folder else None
    images = _stamped(Path(own["path"])) if own else {}
    target = _target(root, name, [DECODER, name, own, images, facts.files or facts.digest])
    record = _decoded(target)
    if record is None:
        if own:
            splits = decode_folder(images, int(own["size"]), report)
        else:
            find_files(name, facts, root, report)
            splits = DECODERS.get(name, decode_by_torchvision)(name, facts, root, report)
        report("decoding")
        record = _write_decoded(target, splits)
    return record


def _target(root: Path, name: str, key: list[Any]) -> Path:
    """The folder of what is decoded under `key`: another key, another folder."""
    text = json.dumps(key, sort_keys=True)
    return root / "decoded" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _streamed_folder(
    name: str, root: Path, image_folders: dict[str, dict[str, Any]] | None
) -> dict[str, Any]:
    """{path, size} of a streamed data set; raises ZtwError when a built-in one is not there."""
    if name in (image_folders or {}):
        return (image_folders or {})[name]
    facts, path = dataset_facts(name), root / name
    if not path.is_dir():
        raise ZtwError(
            f"{name}: not found. By hand: put train/<class>/ and val/<class>/ with its images below {path}"
            f" (from {facts.source})"
        )
    return {"path": str(path), "size": facts.size}


def _prepare_streamed(
    name: str, facts: DatasetFacts, folder: dict[str, Any], root: Path, report: Report
) -> dict[str, Any]:
    """List a folder's images once; its listing is made anew when a class folder gains or loses a file."""
    path = Path(folder["path"]).absolute()
    target = _target(root, name, [DECODER, name, str(path), class_stamps(path)])
    record = _decoded(target)
    if record is None:
        report(f"listing {path}")
        listing = list_images(path, facts.classes)
        counts = {split: write_listing(target, listing, split) for split in listing}
        record = _write_record(target, counts, len({row[0] for row in listing["train"][1]}), facts.channels)
    return record | {"streamed": True, "folder": str(path), "size": int(folder["size"])}


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


def _stamped(folder: Path) -> Stamped:
    """split -> [(class, path, bytes, mtime)] of a folder of class folders."""
    found = {}
    for split, (place, rows) in list_images(folder).items():
        paths = [(name, place / name / file) for name, file in rows]
        found[split] = [
            (name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for name, path in paths
        ]
    return found


def _decoded(target: Path) -> dict[str, Any] | None:
    """The record of an earlier decoding whose files are still what was written, else None."""
    if not (target / "record.json").exists():
        return None
    record = read_json(target / "record.json")
    for split in record["sha256"]:
        path = target / f"{split}.safetensors"
        if not path.exists() or not is_unaltered(path, record, split):
            return None
    stamps = {split: stamp(target / f"{split}.safetensors") for split in record["sha256"]}
    if record.get("stamps") != stamps:  # an old record, or files that were moved: spare the next hashing
        record["stamps"] = stamps
        write_json(target / "record.json", record)
    return _with_paths(record, target)


def _with_paths(record: dict[str, Any], target: Path) -> dict[str, Any]:
    """The record with where its files are now: a data root may be moved."""
    return {**record, "decoded": {split: str(target / f"{split}.safetensors") for split in record["sha256"]}}


def _write_decoded(target: Path, splits: Splits) -> dict[str, Any]:
    try:
        pixels = {split: write_split(target / f"{split}.safetensors", part) for split, part in splits.items()}
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)  # what is there without a record may be gigabytes
        raise
    train = splits["train"]
    mean, std = _statistics(pixels["train"])
    counts = {split: len(part.labels) for split, part in splits.items()}
    channels, size, _ = train.shape
    more = {"size": size, "mean": mean, "std": std}
    return _write_record(target, counts, int(train.labels.max()) + 1, channels, more)


def _write_record(
    target: Path, counts: dict[str, int], classes: int, channels: int, more: dict[str, Any] | None = None
) -> dict[str, Any]:
    files = {split: target / f"{split}.safetensors" for split in counts}
    record = {
        "classes": classes,
        "channels": channels,
        "counts": counts,
        "sha256": {split: sha256(path) for split, path in files.items()},
        "stamps": {split: stamp(path) for split, path in files.items()},
        **(more or {}),
    }
    write_json(target / "record.json", record)
    return _with_paths(record, target)


def _statistics(counts: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], rounded to four digits, from `_histogram`."""
    counts = counts.double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values / counts.sum(1)
    variance = counts @ values.square() / counts.sum(1) - mean.square()
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in variance.sqrt().tolist()]
