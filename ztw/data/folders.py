"""List the images of each class folder, and report every file that is left out."""

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

SPLITS = {"train": ("train",), "test": ("test", "val")}  # split -> possible names of its folder
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
NAMED = 1000  # an error lists at most this many dead links
OUTSIDE = "images outside a class folder"


@dataclass(frozen=True)
class Listed:
    """The images of a split.

    Args:
        place: the split's folder.
        class_names: in the order of the labels.
        rows: (class, path below `place`), sorted by class and path.
        stamp: changes when a file is added, removed, renamed or overwritten.
    """

    place: Path
    class_names: list[str]
    rows: list[tuple[str, str]]
    stamp: str

    def labels(self) -> torch.Tensor:
        """Return the labels, int64 (N,)."""
        number = {name: label for label, name in enumerate(self.class_names)}
        return torch.tensor([number[name] for name, _ in self.rows])

    def paths(self) -> Iterator[str]:
        """Return the path of every image."""
        return (f"{self.place}/{file}" for _, file in self.rows)


def list_images(folder: Path, num_classes: int | None, report: Report) -> dict[str, Listed]:
    """List the images of a folder that holds train/ and test/ (or val/), each with one folder per class.

    Images may lie in subfolders of a class folder. Hidden files are ignored. Files that operating systems create are
    counted in the report. Class names are compared in Unicode form NFC, because file systems use different forms.

    Args:
        num_classes: the expected number of classes; None = any.
        report: called with the files that are left out.

    Raises:
        ZtwError: for classes without images, dead links or different classes in the splits.
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
    """Report the classes whose folders are written in several Unicode forms."""
    forms: defaultdict[str, set[str]] = defaultdict(set)
    for walk in walks:
        for folder in walk.folders:
            forms[nfc(folder)].add(folder)
    several = [shown(name) for name in in_order(forms) if len(forms[name]) > 1]
    if several:
        report(
            Note(
                f"classes {', '.join(several)}: the names of their folders use several Unicode forms"
                " (macOS writes NFD, others NFC); names with the same NFC form are one class"
            )
        )


def nfc(name: str) -> str:
    """Return a name in Unicode form NFC: "e" and its accent as one character."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
    """Sort class names in the order of the labels: by number if all names are numbers, else alphabetically."""
    names = sorted(names)
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    return sorted(names, key=int) if numbers else names


def split_folders(folder: Path, report: Report) -> dict[str, Path]:
    """Find the folder of each split.

    Raises:
        ZtwError: if a split has no folder.
    """
    found = {}
    for split, names in SPLITS.items():
        places = [folder / name for name in names if (folder / name).is_dir()]
        if not places:
            raise ZtwError(f"image folder {shown(folder)!r}: has no folder {' or '.join(names)}/")
        # ImageNet's test/ has no labels, and so no class folders
        used = next((place for place in places if _has_class_folders(place)), places[-1])
        if len(places) > 1:
            report(Note(f"{split}: uses the images in {shown(used)} only"))
        found[split] = used
    return found


def _has_class_folders(place: Path) -> bool:
    names = (path.name for path in place.iterdir() if path.is_dir())
    return any(not name.startswith(".") and not is_left_behind(name) for name in names)


class _Walk:
    """Walk through a split's folder, and record the images of every class and all other files.

    Reads size and modification time of every image: a few seconds for a million files.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.rows: list[tuple[str, str]] = []
        self.skipped: Counter[str] = Counter()  # kind of file -> number
        self.folders: list[str] = []  # names of the class folders on disk
        self.empty: dict[str, str] = {}  # class without images -> its folder and the files in it
        self.dead: list[str] = []
        self._digest = hashlib.sha256()
        for entry in self._entries(str(place)):
            if not entry.is_dir():
                self.skipped[OUTSIDE if _is_image(entry) else _kind(entry)] += 1
            else:
                self._class(entry)

    def _class(self, entry: os.DirEntry[str]) -> None:
        images, skipped, label = len(self.rows), self.skipped.copy(), nfc(entry.name)
        self.folders.append(entry.name)
        if label != entry.name:  # the order of labels follows the NFC names
            self._digest.update(b"NFC\n")
        self._images(entry.path, label, f"{entry.name}/")
        if len(self.rows) == images:
            self.empty[label] = f"{shown(entry.name)!r} ({_counted(self.skipped - skipped) or 'empty'})"

    def _images(self, folder: str, label: str, below: str) -> None:
        """Record the images of a folder; below: its path in the split's folder, with a slash at the end."""
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
        """Yield the entries of a folder by name, without hidden files, files of operating systems and dead links."""
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
        """Yield the reasons why the folder cannot be used."""
        if self.dead:
            more = f" and {len(self.dead) - NAMED} more" if len(self.dead) > NAMED else ""
            yield f"{len(self.dead)} dead links: {', '.join(self.dead[:NAMED])}{more}"
        if not self.rows and self.skipped[OUTSIDE]:
            yield f"{shown(self.place)!r}: has no class folders; move its images into one folder per class"
        elif empty := [text for name, text in self.empty.items() if name not in self.names()]:
            yield f"no readable image in {', '.join(empty)}"
        elif not self.rows:
            yield f"{shown(self.place)!r}: has no images in class folders"

    def names(self) -> set[str]:
        """Return the classes that have images."""
        return {name for name, _ in self.rows}

    def listed(self) -> Listed:
        """Return the images, sorted."""
        class_names = in_order(self.names())
        number = {name: label for label, name in enumerate(class_names)}
        rows = sorted(self.rows, key=lambda row: (number[row[0]], row[1]))
        return Listed(self.place, class_names, rows, self._digest.hexdigest())


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(EXTENSIONS) and entry.is_file()


def _kind(entry: os.DirEntry[str]) -> str:
    """Name the kind of a file that is not an image."""
    if not entry.is_file():
        return "special files"
    return shown(os.path.splitext(entry.name)[1].lower()) or "files without a suffix"


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def write_listing(target: Path, listed: Listed, split: str) -> None:
    """Write a split's paths (below the image folder) and labels as arrays that jobs can memory-map.

    - `text`: uint8, all paths in the file system's encoding.
    - `ends`: int64 (N,), the end of each path in `text`.
    - `labels`: int64 (N,).
    """
    paths = [os.fsencode(f"{listed.place.name}/{file}") for _, file in listed.rows]
    ends = torch.tensor([len(path) for path in paths]).cumsum(0)
    text = torch.frombuffer(bytearray(b"".join(paths)), dtype=torch.uint8)
    for name, array in {"text": text, "ends": ends, "labels": listed.labels()}.items():
        write_array(target / f"{split}-{name}.npy", array)
