"""Making data sets ready: their files found and checked, then decoded once into uint8 tensors."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ztw.data import DatasetFacts, dataset_facts, held_out_split, is_unaltered, stamp
from ztw.errors import ZtwError
from ztw.files import atomic, read_json, sha256, write_json
from ztw.progress import Report
from ztw.sources import TORCHVISION, FileTree, find_archive, find_files
from ztw.streaming import class_stamps, list_images, read_rgb, write_listing

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
            splits = _decode_folder(images, int(own["size"]), report)
        else:
            find_files(name, facts, root, report)
            splits = DECODERS.get(name, _decode_by_torchvision)(name, facts, root, report)
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


@dataclass
class Split:
    """One split on its way into a file: labels int64 (N,); the images come in uint8 (B, C, size, size)."""

    labels: Tensor
    shape: tuple[int, int, int]  # (C, size, size)
    chunks: Iterable[np.ndarray]


Splits = dict[str, Split]


def _whole(images: Tensor, labels: Tensor) -> Split:
    """A split that is in memory."""
    channels, height, width = images.shape[1:]
    return Split(labels.long(), (channels, height, width), [images.contiguous().numpy()])


def _decode_digits(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images * (255 / 16)).round().byte()[:, None]
    labels = torch.tensor(digits.target).long()
    train, test = held_out_split(labels, fraction=0.2, seed=0)
    return {"train": _whole(images[train], labels[train]), "test": _whole(images[test], labels[test])}


def _decode_svhn(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    from scipy.io import loadmat

    splits = {}
    for split, file in zip(("train", "test"), facts.files or {}, strict=True):
        content = loadmat(root / file)  # X: (32, 32, 3, N), y: (N, 1) with 10 for the digit 0
        images = torch.from_numpy(content["X"]).permute(3, 2, 0, 1)
        splits[split] = _whole(images, torch.from_numpy(content["y"].astype(np.int64)).flatten() % 10)
    return splits


def _decode_by_torchvision(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    from torchvision import datasets

    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as scratch:
        for archive in [file for file in facts.files or {} if file.endswith(".tar.gz")]:
            with tarfile.open(root / archive) as tar:
                safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                tar.extractall(
                    scratch, **safely
                )  # Python before 3.11.4 has no filters; its SHA-256 is checked
            root = Path(scratch)
        return {
            split: _from_torchvision(getattr(datasets, TORCHVISION[name])(root, train=split == "train"))
            for split in ("train", "test")
        }


def _from_torchvision(decoded: Any) -> Split:
    images = torch.as_tensor(decoded.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return _whole(images, torch.as_tensor(decoded.targets))


def _decode_tiny_imagenet(name: str, facts: DatasetFacts, root: Path, report: Report) -> Splits:
    """Classes in the order of the sorted WordNet ids; its validation images are our test split."""
    tree = FileTree(find_archive(name, facts, root, report))
    files = _tiny_imagenet_files(tree)
    classes = sorted(set(tree.read("wnids.txt").decode().split()))
    _check_counts(tree.path, files, classes, facts)
    digest, size = Digest(tree), int(facts.size or 0)
    splits = {}
    for split, rows in files.items():
        labels = torch.tensor([classes.index(wnid) for _, wnid in rows])
        arguments = _tree_arguments(digest, [file for file, _ in rows], size)
        chunks = _in_threads(_decode_exactly, arguments, len(rows), f"decoding {split}", report)
        splits[split] = Split(labels, (3, size, size), chunks)
    splits["test"].chunks = _verified(splits["test"].chunks, digest, facts.digest)
    return splits


DECODERS: dict[str, Callable[[str, DatasetFacts, Path, Report], Splits]] = {
    "digits": _decode_digits,
    "svhn": _decode_svhn,
    "tiny_imagenet": _decode_tiny_imagenet,
}


def _tiny_imagenet_files(tree: FileTree) -> dict[str, list[tuple[str, str]]]:
    """split -> [(file, WordNet id)], in the order of the names."""
    lines = tree.read("val/val_annotations.txt").decode().splitlines()
    annotated = {line.split("\t")[0]: line.split("\t")[1] for line in lines if "\t" in line}
    found: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for name in tree.names():
        match name.split("/"):
            case ["train", wnid, "images", file] if file.endswith(".JPEG"):
                found["train"].append((name, wnid))
            case ["val", "images", file] if file.endswith(".JPEG"):
                if file not in annotated:
                    raise ZtwError(f"{tree.path}: val/val_annotations.txt has no line for {file}")
                found["test"].append((name, annotated[file]))
    return found


def _check_counts(
    path: Path, files: dict[str, list[tuple[str, str]]], classes: list[str], facts: DatasetFacts
) -> None:
    """Raise ZtwError unless every class has the number of images in each split that the facts say."""
    if len(classes) != facts.classes:
        raise ZtwError(f"{path}: wnids.txt lists {len(classes)} classes, expected {facts.classes}")
    for split, expected in (facts.counts or {}).items():
        counts = Counter(wnid for _, wnid in files[split])
        if unknown := sorted(counts.keys() - set(classes)):
            raise ZtwError(f"{path}: {split} has a class {unknown[0]} that is not in wnids.txt")
        for wnid in classes:
            if counts[wnid] != expected:
                raise ZtwError(f"{path}: {split} has {counts[wnid]} images of {wnid}, expected {expected}")


class Digest:
    """A running SHA-256 of the files of a tree: of "name NUL size NUL content", one after the other."""

    def __init__(self, tree: FileTree) -> None:
        self.tree, self._hash = tree, hashlib.sha256()

    def read(self, name: str) -> bytes:
        """The content of a file, which is added to the digest."""
        content = self.tree.read(name)
        self._hash.update(f"{name}\0{len(content)}\0".encode())
        self._hash.update(content)
        return content

    def hexdigest(self) -> str:
        """Of what was read, in the order it was read."""
        return self._hash.hexdigest()


def _tree_arguments(digest: Digest, names: list[str], size: int) -> Iterator[tuple]:
    for name in names:
        yield BytesIO(digest.read(name)), f"{digest.tree.path}/{name}", size


def _decode_exactly(file: IO[bytes], name: str, size: int) -> np.ndarray:
    rgb = read_rgb(file, name)
    if rgb.size != (size, size):
        raise ZtwError(f"{name}: has {rgb.width} x {rgb.height} pixels, expected {size} x {size}")
    return np.asarray(rgb).transpose(2, 0, 1)


def _decode_resized(path: Path, name: str, size: int) -> np.ndarray:
    rgb = read_rgb(path, name)
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb).transpose(2, 0, 1)


def _in_threads(
    decode: Callable[..., np.ndarray], arguments: Iterator[tuple], total: int, what: str, report: Report
) -> Iterator[np.ndarray]:
    """Decode images in order, 1000 at a time; Pillow lets go of the GIL, and arguments are read meanwhile."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, total, 1000):
            report(f"{what}: {start}/{total} images")
            futures = [pool.submit(decode, *each) for each in islice(arguments, 1000)]
            yield np.stack([future.result() for future in futures])


def _verified(chunks: Iterable[np.ndarray], digest: Digest, expected: str | None) -> Iterator[np.ndarray]:
    """The last images, then the files of labels; raises ZtwError when what was read is not the original."""
    yield from chunks
    for name in ("val/val_annotations.txt", "wnids.txt"):
        digest.read(name)
    if (found := digest.hexdigest()) != expected:
        raise ZtwError(
            f"{digest.tree.path}: altered (SHA-256 of its files {found[:12]}..., expected {str(expected)[:12]}...);"
            " delete it to fetch it again"
        )


Stamped = dict[str, list[tuple[str, str, int, int]]]


def _stamped(folder: Path) -> Stamped:
    """split -> [(class, path, bytes, mtime)] of a folder of class folders."""
    found = {}
    for split, (place, rows) in list_images(folder).items():
        paths = [(name, place / name / file) for name, file in rows]
        found[split] = [
            (name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for name, path in paths
        ]
    return found


def _decode_folder(rows_of: Stamped, size: int, report: Report) -> Splits:
    """Decode, convert to RGB and resize every image of `_stamped`."""
    classes = sorted({row[0] for row in rows_of["train"]})
    splits = {}
    for split, rows in rows_of.items():
        labels = torch.tensor([classes.index(row[0]) for row in rows])
        arguments = ((Path(path), path, size) for _, path, *_ in rows)
        chunks = _in_threads(_decode_resized, arguments, len(rows), f"decoding {split}", report)
        splits[split] = Split(labels, (3, size, size), chunks)
    return splits


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
        pixels = {
            split: _write_split(target / f"{split}.safetensors", part) for split, part in splits.items()
        }
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


def _write_split(path: Path, split: Split) -> Tensor:
    """Write a safetensors file of labels and images chunk by chunk, as `save_file` needs all twice in memory.

    Returns how often each value occurs in each channel, int64 (C, 256).
    """
    shape, labels = [len(split.labels), *split.shape], split.labels.numpy().astype("<i8").tobytes()
    end = len(labels) + int(np.prod(shape))
    tensors = {
        "labels": {"dtype": "I64", "shape": [len(split.labels)], "data_offsets": [0, len(labels)]},
        "images": {"dtype": "U8", "shape": shape, "data_offsets": [len(labels), end]},
    }
    header = json.dumps(tensors).encode()
    header += b" " * (-len(header) % 8)  # the format aligns what follows
    counts = torch.zeros(split.shape[0], 256, dtype=torch.long)
    with atomic(path) as scratch, scratch.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + labels)
        for chunk in split.chunks:
            file.write(chunk.tobytes())
            counts += _histogram(torch.from_numpy(chunk))
    return counts


def _histogram(images: Tensor) -> Tensor:
    """How often each value occurs in each channel: int64 (C, 256) of uint8 (N, C, H, W)."""
    channels = images.transpose(0, 1).flatten(1)
    return torch.stack([torch.bincount(channel, minlength=256) for channel in channels])


def _statistics(counts: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], rounded to four digits, from `_histogram`."""
    counts = counts.double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values / counts.sum(1)
    variance = counts @ values.square() / counts.sum(1) - mean.square()
    return [round(v, 4) for v in mean.tolist()], [round(v, 4) for v in variance.sqrt().tolist()]
