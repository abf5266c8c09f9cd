"""Find the files of built-in data sets: system copy, download or Debian package, checked by SHA-256."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ztw.catalogue.datasets import DatasetMetadata
from ztw.data.archives import copy_bounded, read_tar
from ztw.download import download
from ztw.errors import ZtwError
from ztw.files import sha256
from ztw.progress import Report

# Data set -> folder of the system that holds each file as FILE or FILE.gz
SYSTEM_COPIES = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
DEBIAN_PACKAGES = {"fashion_mnist": "dataset-fashion-mnist"}

Attempt = tuple[str, Callable[[Path], None]]  # (name, function that fills a scratch folder)


def find_files(name: str, metadata: DatasetMetadata, root: Path, report: Report) -> None:
    """Put the files of a built-in data set below `root`: keep existing ones, then try all sources.

    Raises:
        ZtwError: if an existing file has another SHA-256, or no source has the files.
    """
    files = metadata.files or {}
    missing = {file: expected for file, expected in files.items() if not (root / file).exists()}
    for file in files.keys() - missing.keys():
        if (found := sha256(root / file)) != files[file]:
            raise ZtwError(
                f"{root / file}: altered or truncated (SHA-256 {found[:12]}..., expected {files[file][:12]}...);"
                " delete it to download it again"
            )
    if missing:
        attempts = _attempts(name, metadata, list(missing), root, report)
        _fetch(name, attempts, missing, ", ".join(missing), root, report)


def find_archive(name: str, metadata: DatasetMetadata, root: Path, report: Report) -> Path:
    """Return the data set's folder below `root` or its zip; download the zip if neither exists."""
    folder = root / str(metadata.archive)
    packed = root / f"{metadata.archive}.zip"
    if not folder.is_dir() and not packed.exists():
        attempts = _attempts(name, metadata, [packed.name], root, report)
        by_hand = f"{packed.name} or the folder {folder.name}/"
        _fetch(name, attempts, {packed.name: str(metadata.archive_sha256)}, by_hand, root, report)
    return folder if folder.is_dir() else packed


def _attempts(
    name: str, metadata: DatasetMetadata, missing: list[str], root: Path, report: Report
) -> list[Attempt]:
    attempts: list[Attempt] = []
    if (system := SYSTEM_COPIES.get(name)) is not None:
        attempts.append((f"system copy {system}", lambda scratch: _from_folder(system, missing, scratch)))
    kept = root / f".download-{name}"
    attempts.append(
        (f"download from {metadata.url}", lambda scratch: _from_url(metadata, missing, kept, scratch, report))
    )
    if (package := DEBIAN_PACKAGES.get(name)) is not None:
        attempts.append(
            (f"Debian's package {package}", lambda scratch: _from_debian(package, system, missing, scratch))
        )
    return attempts


def _fetch(
    name: str,
    attempts: list[Attempt],
    wanted: Mapping[str, str],
    by_hand: str,
    root: Path,
    report: Report,
) -> None:
    """Try the sources in order; wanted: file -> SHA-256."""
    failures = []
    for label, attempt in attempts:
        report(f"looking for {name}: {label}")
        for left in root.glob(f".fetch-{name}-*"):  # scratch folders of a killed job
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=root, prefix=f".fetch-{name}-") as scratch:
            try:
                attempt(Path(scratch))
                _move_checked(Path(scratch), root, wanted)
                report(f"found {name}: {label}")
                return
            except (ZtwError, OSError, EOFError, zlib.error, subprocess.SubprocessError) as error:
                failures.append(f"{label}: {' '.join(str(error).split())[:300]}")
    raise ZtwError(f"{name}: not found, tried {'; '.join(failures)}; put {by_hand} below {root} yourself")


def _move_checked(scratch: Path, root: Path, files: Mapping[str, str]) -> None:
    for file, expected in files.items():
        if not (scratch / file).exists():
            raise ZtwError(f"{file} not found")
        if (found := sha256(scratch / file)) != expected:
            raise ZtwError(f"{file} has SHA-256 {found[:12]}..., expected {expected[:12]}...")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (scratch / file).replace(root / file)


def _from_folder(folder: Path, files: list[str], scratch: Path) -> None:
    """Unpack FILE.gz, or copy FILE, from a flat folder to its place below `scratch`."""
    for file in files:
        target = scratch / file
        target.parent.mkdir(parents=True, exist_ok=True)
        plain = folder / target.name
        opener: Callable = open if plain.exists() else gzip.open
        source = plain if plain.exists() else plain.with_name(plain.name + ".gz")
        with opener(source, "rb") as packed, target.open("wb") as unpacked:
            copy_bounded(packed, unpacked, str(source))


def _from_url(metadata: DatasetMetadata, files: list[str], kept: Path, scratch: Path, report: Report) -> None:
    """Download to `kept`, then unpack to `scratch`. After a failure the files stay in `kept`, and another run resumes.

    `_fetch` checks the unpacked files, because packed files differ between servers.
    """
    try:
        for file in files:
            name = f"{Path(file).name}{'.gz' if metadata.gzipped else ''}"
            download(f"{metadata.url}/{name}", kept / name, None, report)
    finally:
        with suppress(OSError):  # not empty, or missing
            kept.rmdir()
    try:
        _from_folder(kept, files, scratch)
    finally:
        shutil.rmtree(kept)


def _from_debian(package: str, folder: Path | None, files: list[str], scratch: Path) -> None:
    """Download a Debian package and unpack it without installing it; needs no root."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise ZtwError(f"{tool} not found")
    try:
        _apt_download(package, scratch)
    except ZtwError as unknown_package:
        _apt_update(unknown_package)
        _apt_download(package, scratch)
    archive = next(scratch.glob("*.deb"))
    assert folder is not None
    members = {f".{folder / Path(file).name}.gz": scratch / f"{Path(file).name}.gz" for file in files}
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking:
        assert unpacking.stdout is not None
        for member, content in read_tar(unpacking.stdout, archive.name, members).items():
            members[member].write_bytes(content)
    _from_folder(scratch, files, scratch)


def _apt_download(package: str, scratch: Path) -> None:
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package]
    run = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=600)
    if run.returncode or not list(scratch.glob("*.deb")):
        raise ZtwError((run.stderr.strip().splitlines() or ["nothing was downloaded"])[-1])


def _apt_update(reason: ZtwError) -> None:
    """Refresh the package lists if the user is root, else raise `reason`."""
    if os.geteuid() != 0:
        raise ZtwError(f"{reason} (the package lists may be missing: run 'apt-get update' as root)")
    subprocess.run(["apt-get", "update", "-qq"], capture_output=True, timeout=600, check=False)
