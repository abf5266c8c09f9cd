"""Archives and packed files, read within limits. Nothing is unpacked under a name that an archive gives."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Protocol

from ztw.errors import ZtwError, reason

# The largest of the built-in data sets: a file of 248 MB, an archive that unpacks to 0.5 GB in 120,609 members
LARGEST_FILE = 1 << 29  # bytes
LARGEST_ARCHIVE = 1 << 31  # bytes
MOST_MEMBERS = 500_000
CHUNK = 1 << 20  # bytes
# how a broken file, or a member of a zip that is missing, encrypted or packed in another way, is refused
UNREADABLE = (
    *(OSError, EOFError, KeyError, RuntimeError, NotImplementedError),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
)


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes, b"" at the end."""


def copy_bounded(source: Readable, target: IO[bytes], name: str) -> None:
    """Copy a stream that may be a small packed file; raises ZtwError past LARGEST_FILE bytes."""
    copied = 0
    while chunk := source.read(CHUNK):
        copied += len(chunk)
        _check_size(copied, name)
        target.write(chunk)


def read_tar(stream: Readable, name: str, wanted: Collection[str]) -> dict[str, bytes]:
    """The content of the wanted members of a tar, by their names in it; all others are passed over.

    stream: unpacked; name: of the archive, for errors. Nothing is written, so no path or link leads anywhere.
    Raises ZtwError when a member is missing, too large or no regular file, or the archive is broken or too big.
    """
    found: dict[str, bytes] = {}
    try:
        # "r|" reads forwards only: every byte, of headers too, passes through the count
        with tarfile.open(fileobj=_Counted(stream, name), mode="r|") as tar:  # type: ignore[call-overload]
            for count, member in enumerate(tar, start=1):
                _check_count(count, name)
                if member.name not in wanted:
                    continue
                if not member.isreg() or member.issparse():
                    raise ZtwError(f"{name}: {member.name} is no regular file")
                _check_size(member.size, f"{name}: {member.name}")
                content = tar.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
                if len(found) == len(wanted):
                    break
    except UNREADABLE as error:
        raise ZtwError(f"{name}: no whole tar archive ({reason(error, name)})") from error
    if missing := sorted(set(wanted) - found.keys()):
        raise ZtwError(f"{name}: has no {', '.join(missing)}")
    return found


class _Counted:
    """A stream that ends in ZtwError after LARGEST_ARCHIVE bytes."""

    def __init__(self, stream: Readable, name: str) -> None:
        self._stream, self._name, self._count = stream, name, 0

    def read(self, size: int) -> bytes:
        self._count += size
        _check_total(self._count, self._name)
        return self._stream.read(size)


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip whose members are few and small enough by its own directory, which `read_zipped` holds them to.

    Raises ZtwError for another file.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ZtwError(f"{path}: no zip ({reason(error, path)}); delete it to fetch it again") from error
    members = archive.infolist()
    _check_count(len(members), str(path))
    for member in members:
        _check_size(member.file_size, f"{path}: {member.filename}")
    _check_total(sum(member.file_size for member in members), str(path))
    return archive


def read_zipped(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member; raises one of UNREADABLE where it is broken or longer than the zip says."""
    member = archive.getinfo(name)
    with archive.open(member) as file:
        # not read(): that unpacks as much as there is before it compares
        return file.read(member.file_size)


def _check_size(size: int, name: str) -> None:
    if size > LARGEST_FILE:
        raise ZtwError(f"{name}: unpacks to more than {LARGEST_FILE:,} bytes, which no data set's file has")


def _check_total(size: int, name: str) -> None:
    if size > LARGEST_ARCHIVE:
        raise ZtwError(f"{name}: unpacks to more than {LARGEST_ARCHIVE:,} bytes, which no data set has")


def _check_count(count: int, name: str) -> None:
    if count > MOST_MEMBERS:
        raise ZtwError(f"{name}: has more than {MOST_MEMBERS:,} members, which no data set has")
