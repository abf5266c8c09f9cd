"""Read archives and compressed files within size limits. No archive chooses the path of a file on disk."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Protocol

from ztw.errors import ZtwError, reason

# The largest built-in data set has a file of 248 MB and an archive of 120,609 members that unpacks to 0.5 GB
LARGEST_FILE = 1 << 29  # bytes
LARGEST_ARCHIVE = 1 << 31  # bytes
MOST_MEMBERS = 500_000
CHUNK = 1 << 20  # bytes
# Errors of a broken file, and of a zip member that is missing, encrypted or compressed in an unknown way
UNREADABLE = (
    *(OSError, EOFError, KeyError, RuntimeError, NotImplementedError),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
)


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` bytes; b"" at the end."""


def copy_bounded(source: Readable, target: IO[bytes], name: str) -> None:
    """Copy an unpacked stream of at most LARGEST_FILE bytes.

    Raises:
        ZtwError: if the stream is longer.
    """
    copied = 0
    while chunk := source.read(CHUNK):
        copied += len(chunk)
        _check_size(copied, name)
        target.write(chunk)


def read_tar(stream: Readable, name: str, wanted: Collection[str]) -> dict[str, bytes]:
    """Read the wanted members of a tar stream; nothing is written to disk.

    Args:
        stream: the uncompressed stream.
        name: name of the archive, for errors.

    Returns:
        name -> content.

    Raises:
        ZtwError: if a member is missing, too large or not a regular file, or the archive is broken or too large.
    """
    found: dict[str, bytes] = {}
    try:
        # "r|" reads forwards only, so that _Counted sees all bytes, headers included
        with tarfile.open(fileobj=_Counted(stream, name), mode="r|") as tar:  # type: ignore[call-overload]
            for count, member in enumerate(tar, start=1):
                _check_count(count, name)
                if member.name not in wanted:
                    continue
                if not member.isreg() or member.issparse():
                    raise ZtwError(f"{name}: {member.name} is not a regular file")
                _check_size(member.size, f"{name}: {member.name}")
                content = tar.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
                if len(found) == len(wanted):
                    break
    except UNREADABLE as error:
        raise ZtwError(f"{name}: not a complete tar archive ({reason(error, name)})") from error
    if missing := sorted(set(wanted) - found.keys()):
        raise ZtwError(f"{name}: has no {', '.join(missing)}")
    return found


class _Counted:
    """A stream that raises ZtwError after LARGEST_ARCHIVE bytes."""

    def __init__(self, stream: Readable, name: str) -> None:
        self._stream, self._name, self._count = stream, name, 0

    def read(self, size: int) -> bytes:
        self._count += size
        _check_total(self._count, self._name)
        return self._stream.read(size)


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip and check the number and sizes of its members.

    Raises:
        ZtwError: if the file is not a zip, has too many members, or members that are too large.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ZtwError(
            f"{path}: not a zip ({reason(error, path)}); delete it to download it again"
        ) from error
    members = archive.infolist()
    _check_count(len(members), str(path))
    for member in members:
        _check_size(member.file_size, f"{path}: {member.filename}")
    _check_total(sum(member.file_size for member in members), str(path))
    return archive


def read_zipped(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a member of a zip.

    Raises:
        UNREADABLE: one of these, if the member is broken or longer than the zip's directory says.
    """
    member = archive.getinfo(name)
    with archive.open(member) as file:
        # read() without a size would unpack all bytes before it checks their number
        return file.read(member.file_size)


def _check_size(size: int, name: str) -> None:
    if size > LARGEST_FILE:
        raise ZtwError(f"{name}: unpacks to more than {LARGEST_FILE:,} bytes, the limit for a file")


def _check_total(size: int, name: str) -> None:
    if size > LARGEST_ARCHIVE:
        raise ZtwError(f"{name}: unpacks to more than {LARGEST_ARCHIVE:,} bytes, the limit for an archive")


def _check_count(count: int, name: str) -> None:
    if count > MOST_MEMBERS:
        raise ZtwError(f"{name}: has more than {MOST_MEMBERS:,} members, the limit for an archive")
