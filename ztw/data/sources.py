"""Where the files of built-in data sets come from: a system copy, a download, Debian's package; checked."""

from __future__ import annotations

import gzip
import http.client
import os
import shutil
import subprocess
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ztw.download import bounded_wait, download
from ztw.errors import ZtwError
from ztw.files import sha256
from ztw.progress import Report
from ztw.study.facts import DatasetFacts

SYSTEM_COPIES = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
DEBIAN_PACKAGES = {"fashion_mnist": "dataset-fashion-mnist"}
TORCHVISION = {"fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


Attempt = tuple[str, Callable[[Path], None]]  # (what it is called, what fills a scratch folder)


def find_files(name: str, facts: DatasetFacts, root: Path, report: Report) -> None:
    """Put a built-in data set's files below `root`: what is there, a system copy, a download, Debian's package."""
    missing = [file for file in facts.files or {} if not (root / file).exists()]
    for file, expected in (facts.files or {}).items():
        if file not in missing and (found := sha256(root / file)) != expected:
            raise ZtwError(
                f"{root / file}: altered or truncated (SHA-256 {found[:12]}..., expected {expected[:12]}...);"
                " delete it to fetch it again"
            )
    if missing:
        wanted = {file: (facts.files or {})[file] for file in missing}
        _fetch(name, _attempts(name, facts, missing), wanted, ", ".join(missing), root, report)


def find_archive(name: str, facts: DatasetFacts, root: Path, report: Report) -> Path:
    """The data set's folder below `root`, or the zip of it, which is downloaded when neither is there."""
    folder = root / str(facts.archive)
    packed = root / f"{facts.archive}.zip"
    if not folder.is_dir() and not packed.exists():
        by_hand = f"{packed.name} or the folder {folder.name}/"
        _fetch(name, _attempts(name, facts, [packed.name]), {packed.name: None}, by_hand, root, report)
    return folder if folder.is_dir() else packed


def _attempts(name: str, facts: DatasetFacts, missing: list[str]) -> list[Attempt]:
    attempts: list[Attempt] = []
    if (system := SYSTEM_COPIES.get(name)) is not None:
        attempts.append((f"system copy {system}", lambda scratch: _from_gz_folder(system, missing, scratch)))
    if (url := facts.url) is not None:
        attempts.append((f"download from {url}", lambda scratch: _download_files(url, missing, scratch)))
    else:
        attempts.append(("download by torchvision", lambda scratch: _download(name, scratch)))
    if (package := DEBIAN_PACKAGES.get(name)) is not None:
        attempts.append(
            (f"Debian's package {package}", lambda scratch: _from_debian(package, system, missing, scratch))
        )
    return attempts


def _fetch(
    name: str,
    attempts: list[Attempt],
    wanted: Mapping[str, str | None],
    by_hand: str,
    root: Path,
    report: Report,
) -> None:
    """Try one attempt after the other; wanted: file -> SHA-256, None where it is checked later."""
    failures = []
    for label, attempt in attempts:
        report(f"looking for {name}: {label}")
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as scratch:
            try:
                with _watching(Path(scratch), label, report):
                    attempt(Path(scratch))
                _move_checked(Path(scratch), root, wanted)
                report(f"found {name}: {label}")
                return
            except (
                ZtwError,
                OSError,
                RuntimeError,
                EOFError,
                zlib.error,
                http.client.HTTPException,
                subprocess.SubprocessError,
            ) as error:
                failures.append(f"{label}: {' '.join(str(error).split())[:160]}")
    raise ZtwError(
        f"{name}: no source has it. Tried: {'; '.join(failures)}. By hand: put {by_hand} below {root}"
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


def _move_checked(scratch: Path, root: Path, files: Mapping[str, str | None]) -> None:
    for file, expected in files.items():
        if not (scratch / file).exists():
            raise ZtwError(f"{file} not found")
        if expected is not None and (found := sha256(scratch / file)) != expected:
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

    with bounded_wait():
        getattr(datasets, TORCHVISION[name])(scratch, download=True)


def _download_files(url: str, files: list[str], scratch: Path) -> None:
    for file in files:
        download(f"{url}/{file}", scratch / file)


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


class FileTree:
    """The files below a folder, or below the one folder a zip holds, by their relative names.

    Raises ZtwError where a file, or the zip, cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip = None if path.is_dir() else self._open()

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise ZtwError(f"{self.path}: no zip ({error}); delete it to fetch it again") from error

    def names(self) -> list[str]:
        """All files, sorted."""
        if self._zip is None:
            found = (Path(place, file) for place, _, files in os.walk(self.path) for file in files)
            return sorted(path.relative_to(self.path).as_posix() for path in found)
        prefix = f"{self.path.stem}/"
        return sorted(name.removeprefix(prefix) for name in self._zip.namelist() if name[-1] != "/")

    def read(self, name: str) -> bytes:
        """The content of a file."""
        try:
            if self._zip is None:
                return (self.path / name).read_bytes()
            return self._zip.read(f"{self.path.stem}/{name}")
        except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ZtwError(
                f"{self.path}: {name} cannot be read ({error}); put the whole there anew"
            ) from error
