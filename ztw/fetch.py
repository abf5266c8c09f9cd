"""Getting data sets: find or download the files, check them, decode them once into uint8 tensors."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.checkpoints import write_tensors
from ztw.data import DATASETS, DatasetFacts, dataset_facts, held_out_split
from ztw.errors import ZtwError
from ztw.files import read_json, sha256, write_json
from ztw.progress import Report

SYSTEM_COPIES = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
DEBIAN_PACKAGES = {"fashion_mnist": "dataset-fashion-mnist"}
TORCHVISION = {"fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
DECODER = 1  # raised when decoding changes, so that old decoded files are not reused
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


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
            _find_files(name, facts, root, report)
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


def _find_files(name: str, facts: DatasetFacts, root: Path, report: Report) -> None:
    """Put a built-in data set's files below `root`: what is there, a system copy, a download, Debian's package."""
    missing = [file for file in facts.files or {} if not (root / file).exists()]
    for file, expected in (facts.files or {}).items():
        if file not in missing and (found := sha256(root / file)) != expected:
            raise ZtwError(
                f"{root / file}: altered or truncated (SHA-256 {found[:12]}..., expected {expected[:12]}...);"
                " delete it to fetch it again"
            )
    if not missing:
        return
    attempts: list[tuple[str, Callable[[Path], None]]] = []
    if (system := SYSTEM_COPIES.get(name)) is not None:
        attempts.append((f"system copy {system}", lambda scratch: _from_gz_folder(system, missing, scratch)))
    attempts.append(("download by torchvision", lambda scratch: _download(name, scratch)))
    if (package := DEBIAN_PACKAGES.get(name)) is not None:
        attempts.append(
            (f"Debian's package {package}", lambda scratch: _from_debian(package, system, missing, scratch))
        )
    failures = []
    for label, attempt in attempts:
        report(f"looking for {name}: {label}")
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
            try:
                with _watching(Path(scratch), label, report):
                    attempt(Path(scratch))
                _move_checked(Path(scratch), root, {file: (facts.files or {})[file] for file in missing})
                report(f"found {name}: {label}")
                return
            except (
                ZtwError,
                OSError,
                RuntimeError,
                EOFError,
                zlib.error,
                subprocess.SubprocessError,
            ) as error:
                failures.append(f"{label}: {' '.join(str(error).split())[:160]}")
    raise ZtwError(
        f"{name}: no source has it. Tried: {'; '.join(failures)}. By hand: put "
        f"{', '.join(missing)} below {root}"
    )


@contextmanager
def _watching(folder: Path, label: str, report: Report) -> Iterator[None]:
    """Report every two seconds how much a download has put into `folder`."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(2):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            report(f"{label}: {size / 1e6:.0f} MB")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _move_checked(scratch: Path, root: Path, files: dict[str, str]) -> None:
    for file, expected in files.items():
        if not (scratch / file).exists():
            raise ZtwError(f"{file} not found")
        if (found := sha256(scratch / file)) != expected:
            raise ZtwError(f"{file} has SHA-256 {found[:12]}..., expected {expected[:12]}...")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (scratch / file).replace(root / file)


def _from_gz_folder(folder: Path, files: list[str], scratch: Path) -> None:
    """Unpack FILE.gz (or copy FILE) of a flat folder to where torchvision expects FILE."""
    for file in files:
        target = scratch / file
        target.parent.mkdir(parents=True, exist_ok=True)
        plain = folder / target.name
        opener: Callable = open if plain.exists() else gzip.open
        source = plain if plain.exists() else plain.with_name(plain.name + ".gz")
        with opener(source, "rb") as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)


def _download(name: str, scratch: Path) -> None:
    from torchvision import datasets

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        getattr(datasets, TORCHVISION[name])(scratch, download=True)
    finally:
        socket.setdefaulttimeout(before)


def _from_debian(package: str, folder: Path | None, files: list[str], scratch: Path) -> None:
    """Fetch a Debian package and unpack it without installing: no root needed."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise ZtwError(f"{tool} not found")
    try:
        _apt_download(package, scratch)
    except ZtwError as unknown_package:
        _apt_update(unknown_package)
        _apt_download(package, scratch)
    archive = next(scratch.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", archive, scratch / "unpacked"], check=True, capture_output=True)
    assert folder is not None
    _from_gz_folder(scratch / "unpacked" / folder.relative_to("/"), files, scratch)


def _apt_download(package: str, scratch: Path) -> None:
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package]
    run = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=600)
    if run.returncode or not list(scratch.glob("*.deb")):
        raise ZtwError((run.stderr.strip().splitlines() or ["nothing was downloaded"])[-1])


def _apt_update(reason: ZtwError) -> None:
    """Refresh the package lists, which only root can; raises the earlier failure when that is not possible."""
    if os.geteuid() != 0:
        raise ZtwError(f"{reason} (the package lists may be missing: 'apt-get update' as root)")
    subprocess.run(["apt-get", "update", "-qq"], capture_output=True, timeout=600, check=False)


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
