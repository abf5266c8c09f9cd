"""Images in folders of class folders: listed, and decoded one by one or in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from ztw.data.record import write_array
from ztw.errors import ZtwError
from ztw.progress import Report

SPLITS = {"train": ("train",), "test": ("test", "val")}  # ours -> names of its folder
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# split -> (its folder, [(class, file name)] sorted)
Listing = dict[str, tuple[Path, list[tuple[str, str]]]]
# split -> [(class, path, bytes, time of change in ns)]
Stamped = dict[str, list[tuple[str, str, int, int]]]


def list_images(folder: Path, classes: int | None = None) -> Listing:
    """The images of a folder that holds train/ and test/ (or val/), each with one folder per class.

    classes: how many there must be, None for any number. Raises ZtwError naming what is wrong.
    """
    found = {split: (place, _class_files(place)) for split, place in split_folders(folder).items()}
    train, test = ({row[0] for row in rows} for _, rows in found.values())
    if classes is not None and len(train) != classes:
        raise ZtwError(
            f"image folder {str(folder)!r}: {classes} class folders expected in train, found {len(train)}"
        )
    if train != test:
        raise ZtwError(
            f"image folder {str(folder)!r}: classes differ between train and test: {sorted(train ^ test)[:5]}"
        )
    return found


def split_folders(folder: Path) -> dict[str, Path]:
    """split -> where its class folders are; raises ZtwError when a split has none."""
    found = {}
    for split, names in SPLITS.items():
        places = [folder / name for name in names if (folder / name).is_dir()]
        if not places:
            raise ZtwError(f"image folder {str(folder)!r}: has no folder {' or '.join(names)}/")
        # ImageNet's test/ has no labels, and so no class folders
        with_classes = (place for place in places if any(entry.is_dir() for entry in place.iterdir()))
        found[split] = next(with_classes, places[-1])
    return found


def _class_files(place: Path) -> list[tuple[str, str]]:
    entries = list(os.scandir(place))
    rows = [
        (entry.name, file.name)
        for entry in entries
        if entry.is_dir()
        for file in os.scandir(entry.path)
        if file.name.lower().endswith(EXTENSIONS) and file.is_file()
    ]
    if rows:
        return sorted(rows)
    if any(entry.name.lower().endswith(EXTENSIONS) for entry in entries):
        raise ZtwError(f"image folder {str(place)!r}: is flat; move its images into one folder per class")
    raise ZtwError(f"image folder {str(place)!r}: has no images in class folders")


def stamped_files(folder: Path) -> Stamped:
    """The images of a folder of class folders, with what tells whether one has changed."""
    found = {}
    for split, (place, rows) in list_images(folder).items():
        paths = [(name, place / name / file) for name, file in rows]
        found[split] = [
            (name, str(path), path.stat().st_size, path.stat().st_mtime_ns) for name, path in paths
        ]
    return found


def class_stamps(folder: Path) -> dict[str, Any]:
    """When each class folder last gained or lost a file, in ns: tells a changed folder without listing it."""
    return {
        split: [
            place.name,
            sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(place) if entry.is_dir()),
        ]
        for split, place in split_folders(folder).items()
    }


def write_listing(target: Path, listing: Listing, split: str) -> int:
    """Write a split's paths (below the image folder) and labels as arrays, which jobs can memory-map.

    text: uint8, all paths one after the other in UTF-8; ends: int64 (N,), where each ends in it;
    labels: int64 (N,), classes in alphabetical order. Returns N.
    """
    place, rows = listing[split]
    label = {name: number for number, name in enumerate(sorted({row[0] for row in rows}))}
    paths = [f"{place.name}/{name}/{file}".encode() for name, file in rows]
    ends = torch.tensor([len(path) for path in paths]).cumsum(0)
    text = torch.frombuffer(bytearray(b"".join(paths)), dtype=torch.uint8)
    labels = torch.tensor([label[name] for name, _ in rows])
    for name, array in {"text": text, "ends": ends, "labels": labels}.items():
        write_array(target / f"{split}-{name}.npy", array)
    return len(rows)


def read_rgb(file: Path | IO[bytes], name: str) -> Image.Image:
    """Decode an image file to RGB; raises ZtwError with its name when that cannot be done."""
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ZtwError(f"{name}: unreadable image ({error})") from error


def decode_in_threads(
    decode: Callable[..., np.ndarray], arguments: Iterator[tuple], total: int, what: str, report: Report
) -> Iterator[np.ndarray]:
    """Decode images in order, 1000 at a time; Pillow lets go of the GIL, and arguments are read meanwhile."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, total, 1000):
            report(f"{what}: {start}/{total} images")
            futures = [pool.submit(decode, *each) for each in islice(arguments, 1000)]
            yield np.stack([future.result() for future in futures])
