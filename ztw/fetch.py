"""Making data sets ready: their files found and checked, then decoded once into uint8 tensors."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.checkpoints import write_tensors
from ztw.data import DATASETS, dataset_facts, held_out_split
from ztw.errors import ZtwError
from ztw.files import read_json, sha256, write_json
from ztw.progress import Report
from ztw.sources import TORCHVISION, find_files

DECODER = 1  # raised when decoding changes, so that old decoded files are not reused


def data_root(configured: str | None = None) -> Path:
    """Where data sets live: the config's data.root, else $ZTW_DATA, else the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(configured or os.environ.get("ZTW_DATA") or Path(cache) / "ztw").expanduser()


def prepare_dataset(
    name: str,
    root: Path | str,
    image_folders: dict[str, dict[str, Any]] | None = None,
    report: Report = lambda text: None,
) -> dict[str, Any]:
    """Make a data set ready: files found and checked by SHA-256, decoded into `root`.

    image_folders: name -> {path, size} of the user's own folders (train/ and test/ or val/).
    Returns the record `ztw.data.load_split` reads: decoded files, counts, classes, mean, std, ...
    Raises ZtwError when no source has the files, one is altered, or the root cannot be written.
    """
    root = Path(root)
    facts = dataset_facts(name, image_folders)
    _check_writable(root)
    folder = (image_folders or {}).get(name)
    images = _list_images(Path(folder["path"])) if folder else {}
    key = json.dumps([DECODER, name, folder, images, facts.files], sort_keys=True)
    target = root / "decoded" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    record = _decoded(target)
    if record is None:
        if folder:
            splits = _decode_folder(images, int(folder["size"]), report)
        else:
            find_files(name, facts, root, report)
            splits = _decode_builtin(name, root)
        report("decoding")
        record = _write_decoded(target, splits)
    # not properties of the decoded files, so that a corrected fact does not need decoding anew
    record |= {"flip": facts.flip, "crop_padding": facts.crop_padding}
    if facts.mean and facts.std:
        record |= {"mean": list(facts.mean), "std": list(facts.std)}
    report(f"{record['counts']['train']} training and {record['counts']['test']} test images in {root}")
    return record


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


Splits = dict[str, tuple[Tensor, Tensor]]


def _decode_builtin(name: str, root: Path) -> Splits:
    """uint8 (N, C, H, W) and int64 (N,) of each split."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.tensor(digits.images * (255 / 16)).round().byte()[:, None]
        labels = torch.tensor(digits.target).long()
        train, test = held_out_split(labels, fraction=0.2, seed=0)
        return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
    from torchvision import datasets

    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as scratch:
        for archive in [file for file in DATASETS[name].files or {} if file.endswith(".tar.gz")]:
            with tarfile.open(root / archive) as tar:
                safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                tar.extractall(
                    scratch, **safely
                )  # Python before 3.11.4 has no filters; its SHA-256 is checked
            root = Path(scratch)
        return {
            split: _tensors(getattr(datasets, TORCHVISION[name])(root, train=split == "train"))
            for split in ("train", "test")
        }


def _tensors(decoded: Any) -> tuple[Tensor, Tensor]:
    """A torchvision data set held in memory as uint8 (N, C, H, W) and int64 (N,)."""
    images = torch.as_tensor(decoded.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images.contiguous(), torch.as_tensor(decoded.targets).long()


Listing = dict[str, list[tuple[str, str, int, int]]]


def _list_images(folder: Path) -> Listing:
    """split -> [(class, path, bytes, mtime)] of a folder of class folders; raises ZtwError naming what is wrong."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = {}
    for split, names in (("train", ("train",)), ("test", ("test", "val"))):
        place = next((folder / name for name in names if (folder / name).is_dir()), None)
        if place is None:
            raise ZtwError(f"image folder {str(folder)!r}: has no folder {' or '.join(names)}/")
        images = sorted(
            path for path in place.glob("*/*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
        )
        if not images:
            raise ZtwError(f"image folder {str(place)!r}: has no images in class folders")
        found[split] = [
            (path.parent.name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in images
        ]
    train, test = ({row[0] for row in rows} for rows in found.values())
    if train != test:
        raise ZtwError(
            f"image folder {str(folder)!r}: classes differ between train and test: {sorted(train ^ test)[:5]}"
        )
    return found


def _decode_folder(rows_of: Listing, size: int, report: Report) -> Splits:
    """Decode, convert to RGB and resize every image of `_list_images`."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    classes = sorted({row[0] for row in rows_of["train"]})
    splits: Splits = {}
    for split, rows in rows_of.items():
        images = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
        for index, (_, path, *_) in enumerate(rows):
            try:
                with Image.open(path) as image:
                    rgb = image.convert("RGB")
            except (OSError, ValueError, SyntaxError) as error:
                raise ZtwError(f"{path}: unreadable image ({error})") from error
            if rgb.size != (size, size):
                rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
            images[index] = pil_to_tensor(rgb)
            if index % 5000 == 0:
                report(f"decoding {split}: {index}/{len(rows)} images")
        splits[split] = (images, torch.tensor([classes.index(row[0]) for row in rows]))
    return splits


def _decoded(target: Path) -> dict[str, Any] | None:
    """The record of an earlier decoding whose files are still what was written, else None."""
    if not (target / "record.json").exists():
        return None
    record = read_json(target / "record.json")
    record = _with_paths(record, target)
    for split, expected in record["sha256"].items():
        path = Path(record["decoded"][split])
        if not path.exists() or sha256(path) != expected:
            return None
    return record


def _with_paths(record: dict[str, Any], target: Path) -> dict[str, Any]:
    """The record with where its files are now: a data root may be moved."""
    return {**record, "decoded": {split: str(target / f"{split}.safetensors") for split in record["sha256"]}}


def _write_decoded(target: Path, splits: Splits) -> dict[str, Any]:
    for split, (images, labels) in splits.items():
        write_tensors(target / f"{split}.safetensors", {"images": images, "labels": labels})
    images, labels = splits["train"]
    mean, std = _statistics(images)
    record = {
        "classes": int(labels.max()) + 1,
        "channels": images.shape[1],
        "size": images.shape[2],
        "mean": mean,
        "std": std,
        "counts": {split: len(labels) for split, (_, labels) in splits.items()},
        "sha256": {split: sha256(target / f"{split}.safetensors") for split in splits},
    }
    write_json(target / "record.json", record)
    return _with_paths(record, target)


def _statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], rounded to four digits."""
    channels = images.transpose(0, 1).flatten(1)
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values / counts.sum(1)
    variance = counts @ values.square() / counts.sum(1) - mean.square()
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in variance.sqrt().tolist()]
