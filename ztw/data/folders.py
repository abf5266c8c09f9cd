"""Images in folders of class folders, listed: nothing that is found there is left out without a word."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch

from ztw.data.images import shown
from ztw.data.record import write_array
from ztw.errors import ZtwError
from ztw.files import is_left_behind, leads_back
from ztw.progress import Note, Report

SPLITS = {"train": ("train",), "test": ("test", "val")}  # ours -> names of its folder
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
NAMED = 1000  # dead links an error names
OUTSIDE = "images outside a class folder"


@dataclass(frozen=True)
class Listed:
    """The images of a split.

    place: its folder; class_names: in the order of the labels; rows: (class, path below the
    place), in the order of the classes and of the paths; stamp: differs when a file was added, removed,
    renamed or overwritten.
    """

    place: Path
    class_names: list[str]
    rows: list[tuple[str, str]]
    stamp: str

    def labels(self) -> torch.Tensor:
        """int64 (N,)."""
        number = {name: label for label, name in enumerate(self.class_names)}
        return torch.tensor([number[name] for name, _ in self.rows])

    def paths(self) -> Iterator[str]:
        """Of every image."""
        return (f"{self.place}/{file}" for _, file in self.rows)


def list_images(folder: Path, num_classes: int | None, report: Report) -> dict[str, Listed]:
    """The images of a folder that holds train/ and test/ (or val/), each with one folder per class.

    num_classes: how many classes there must be, None for any number; report: gets what is left out. Images of a class
    may lie in folders of its folder. Names that begin with a dot are ignored, what systems leave behind is counted.
    A class has one name in all Unicode forms, which file systems differ in: its NFC form.
    Raises ZtwError naming what is wrong: classes without images, dead links, a difference between the splits.
    """
    walks = {split: _Walk(place) for split, place in split_folders(folder, report).items()}
    problems = [f"{split}: {problem}" for split, walk in walks.items() for problem in walk.problems()]
    if problems:
        raise ZtwError(f"image folder {shown(folder)!r}: {'; '.join(problems)}")
    for split, walk in walks.items():
        if walk.skipped:
            report(Note(f"{split}: skipped {_counted(walk.skipped)} (images are {' '.join(EXTENSIONS)})"))
    _say_forms(walks.values(), report)
    found = {split: walk.listed() for split, walk in walks.items()}
    train, test = (listed.class_names for listed in found.values())
    if num_classes is not None and len(train) != num_classes:
        raise ZtwError(
            f"image folder {shown(folder)!r}: {num_classes} class folders expected in train, found {len(train)}"
        )
    if train != test:
        differ = [shown(name) for name in in_order(set(train) ^ set(test))]
        raise ZtwError(f"image folder {shown(folder)!r}: classes differ between train and test: {differ}")
    return found


def _say_forms(walks: Iterable[_Walk], report: Report) -> None:
    """Name the classes whose folders are written in several Unicode forms."""
    forms: defaultdict[str, set[str]] = defaultdict(set)
    for walk in walks:
        for folder in walk.folders:
            forms[nfc(folder)].add(folder)
    several = [shown(name) for name in in_order(forms) if len(forms[name]) > 1]
    if several:
        report(
            Note(
                f"classes {', '.join(several)}: their folders' names are written in several Unicode forms"
                " (macOS writes NFD, others NFC); they are matched by NFC, each is one class"
            )
        )


def nfc(name: str) -> str:
    """A name in Unicode's form NFC: composed, "e" and its accent as one character."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
    """Class names in the order of their labels: alphabetical, or by number where all are numbers."""
    names = sorted(names)
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    return sorted(names, key=int) if numbers else names


def split_folders(folder: Path, report: Report) -> dict[str, Path]:
    """split -> where its class folders are; raises ZtwError when a split has none."""
    found = {}
    for split, names in SPLITS.items():
        places = [folder / name for name in names if (folder / name).is_dir()]
        if not places:
            raise ZtwError(f"image folder {shown(folder)!r}: has no folder {' or '.join(names)}/")
        # ImageNet's test/ has no labels, and so no class folders
        used = next((place for place in places if _has_class_folders(place)), places[-1])
        if len(places) > 1:
            report(Note(f"{split}: its images are those in {shown(used)}, no others"))
        found[split] = used
    return found


def _has_class_folders(place: Path) -> bool:
    names = (path.name for path in place.iterdir() if path.is_dir())
    return any(not name.startswith(".") and not is_left_behind(name) for name in names)


class _Walk:
    """A walk through a split's folder: the images of every class, and whatever else is there.

    A million files take some seconds: each costs one `stat`, for its size and time of change.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.rows: list[tuple[str, str]] = []
        self.skipped: Counter[str] = Counter()  # what kind of file -> how many
        self.folders: list[str] = []  # of classes, as they are written
        self.empty: dict[str, str] = {}  # class -> its folder without an image, and what it holds instead
        self.dead: list[str] = []  # links
        self._digest = hashlib.sha256()
        for entry in self._entries(str(place)):
            if not entry.is_dir():
                self.skipped[OUTSIDE if _is_image(entry) else _kind(entry)] += 1
            else:
                self._class(entry)

    def _class(self, entry: os.DirEntry[str]) -> None:
        images, skipped, label = len(self.rows), self.skipped.copy(), nfc(entry.name)
        self.folders.append(entry.name)
        if label != entry.name:  # the order of the labels is the NFC names': it may have been another before
            self._digest.update(b"NFC\n")
        self._images(entry.path, label, f"{entry.name}/")
        if len(self.rows) == images:
            self.empty[label] = f"{shown(entry.name)!r} ({_counted(self.skipped - skipped) or 'empty'})"

    def _images(self, folder: str, label: str, below: str) -> None:
        """Note the images of a folder of a class; below: its path in the split's folder, with a slash."""
        stamps = []
        for entry in self._entries(folder):
            name = below + entry.name
            if entry.is_dir():
                self._images(entry.path, label, f"{name}/")
            elif _is_image(entry):
                status = entry.stat()
                self.rows.append((label, name))
                stamps.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n")
            else:
                self.skipped[_kind(entry)] += 1
        self._digest.update(os.fsencode("".join(stamps)))

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """What a folder holds, by name; without what is hidden or left behind, and links that lead nowhere or back."""
        try:
            entries = sorted(os.scandir(folder), key=attrgetter("name"))
        except OSError as error:
            raise ZtwError(f"image folder {shown(folder)!r}: cannot be read ({error.strerror})") from error
        for entry in entries:
            if is_left_behind(entry.name):
                self.skipped["._*" if entry.name.startswith("._") else entry.name] += 1
            elif entry.name.startswith("."):
                continue
            elif entry.is_symlink() and (not os.path.exists(entry.path) or leads_back(entry)):
                self.dead.append(shown(entry.path))
            else:
                yield entry

    def problems(self) -> Iterator[str]:
        """What keeps the folder from being used."""
        if self.dead:
            more = f" and {len(self.dead) - NAMED} more" if len(self.dead) > NAMED else ""
            yield f"{len(self.dead)} dead links: {', '.join(self.dead[:NAMED])}{more}"
        if not self.rows and self.skipped[OUTSIDE]:
            yield f"{shown(self.place)!r}: is flat; move its images into one folder per class"
        elif empty := [text for name, text in self.empty.items() if name not in self.names()]:
            yield f"no image that can be read in {', '.join(empty)}"
        elif not self.rows:
            yield f"{shown(self.place)!r}: has no images in class folders"

    def names(self) -> set[str]:
        """The classes that have an image."""
        return {name for name, _ in self.rows}

    def listed(self) -> Listed:
        """The images that were found."""
        class_names = in_order(self.names())
        number = {name: label for label, name in enumerate(class_names)}
        rows = sorted(self.rows, key=lambda row: (number[row[0]], row[1]))
        return Listed(self.place, class_names, rows, self._digest.hexdigest())


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(EXTENSIONS) and entry.is_file()


def _kind(entry: os.DirEntry[str]) -> str:
    """What a file that is no image is called in a count."""
    if not entry.is_file():
        return "special files"
    return shown(os.path.splitext(entry.name)[1].lower()) or "files without a suffix"


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def write_listing(target: Path, listed: Listed, split: str) -> None:
    """Write a split's paths (below the image folder) and labels as arrays, which jobs can memory-map.

    text: uint8, all paths one after the other in the file system's bytes; ends: int64 (N,), where each ends
    in it; labels: int64 (N,).
    """
    paths = [os.fsencode(f"{listed.place.name}/{file}") for _, file in listed.rows]
    ends = torch.tensor([len(path) for path in paths]).cumsum(0)
    text = torch.frombuffer(bytearray(b"".join(paths)), dtype=torch.uint8)
    for name, array in {"text": text, "ends": ends, "labels": listed.labels()}.items():
        write_array(target / f"{split}-{name}.npy", array)
