"""Test malicious archives: no file outside the folder, no followed link, no archive that fills memory or disk."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile

import pytest

import ztw
from ztw.data import archives
from ztw.data.archives import copy_bounded, open_zip, read_tar, read_zipped


def tar_of(*members: tarfile.TarInfo, content: bytes = b"content") -> io.BytesIO:
    """Make a tar of these members; the regular files get the content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for member in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    stream.seek(0)
    return stream


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


LINKS = {
    "symbolic link": (tarfile.SYMTYPE, "/etc/passwd"),
    "symbolic link upwards": (tarfile.SYMTYPE, "../../x"),
    "hard link": (tarfile.LNKTYPE, "secret"),
    "character device": (tarfile.CHRTYPE, ""),
    "block device": (tarfile.BLKTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
    "folder": (tarfile.DIRTYPE, ""),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_member_that_is_not_a_regular_file_is_refused(kind):
    archive = tar_of(member("secret"), member("data.bin", *LINKS[kind]))
    with pytest.raises(ztw.ZtwError, match=r"^a.tar: data.bin is not a regular file$"):
        read_tar(archive, "a.tar", ["data.bin"])


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", "folder/../../outside", "folder/\n\x1b[2J"])
def test_unwanted_members_are_ignored(tmp_path, monkeypatch, path):
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    archive = tar_of(member(path), member("link", tarfile.SYMTYPE, "/"), member("link/x"), member("data.bin"))
    assert read_tar(archive, "a.tar", ["data.bin"]) == {"data.bin": b"content"}
    assert [file.name for file in tmp_path.rglob("*")] == ["inner"], "nothing is written at all"


def test_a_missing_member_is_named():
    with pytest.raises(ztw.ZtwError, match=r"^a.tar: has no b, c$"):
        read_tar(tar_of(member("a")), "a.tar", ["c", "a", "b"])


@pytest.mark.parametrize("content", [b"", b"no tar" * 200, tar_of(member("a")).getvalue()[:515]])
def test_a_broken_tar_gives_a_one_line_error(content):
    with pytest.raises(ztw.ZtwError, match=r"^a.tar: (not a complete tar archive|has no a)") as caught:
        read_tar(io.BytesIO(content), "a.tar", ["a"])
    assert "\n" not in str(caught.value)


def test_a_broken_gzip_gives_a_one_line_error():
    packed = gzip.compress(tar_of(member("a")).getvalue())
    for content in (packed[:-20], packed[:40] + b"\xff\xff\xff" + packed[43:]):
        with (
            gzip.open(io.BytesIO(content)) as unpacked,
            pytest.raises(ztw.ZtwError, match=r"^a.tar: not a complete tar archive"),
        ):
            read_tar(unpacked, "a.tar", ["z"])


def header(size: int, name: str = "data.bin", kind: bytes = tarfile.REGTYPE) -> bytes:
    """Make a header of a tar member that claims a size."""
    info = member(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.REGTYPE, "a.tar: data.bin: unpacks to more than 536,870,912 bytes"),
        (tarfile.GNUTYPE_SPARSE, "a.tar: data.bin is not a regular file"),
    ],
)
def test_a_member_of_huge_claimed_size_is_refused_before_it_is_read(kind, message):
    with pytest.raises(ztw.ZtwError, match=message):
        read_tar(io.BytesIO(header(1 << 40, kind=kind) + bytes(10240)), "a.tar", ["data.bin"])


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_that_unpacks_without_end_is_refused(monkeypatch, kind):
    """An endless unwanted member, or an endless header: the unpacked bytes are counted, not the claimed size."""
    monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 10 << 20)

    class Endless:
        sent = header(1 << 40, "other", kind)

        def read(self, size: int) -> bytes:
            chunk, self.sent = self.sent[:size], self.sent[size:]
            return chunk + bytes(size - len(chunk))

    with pytest.raises(ztw.ZtwError, match=r"a.tar: unpacks to more than 10,485,760 bytes"):
        read_tar(Endless(), "a.tar", ["data.bin"])


def test_too_many_members_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    with pytest.raises(ztw.ZtwError, match=r"a.tar: has more than 3 members"):
        read_tar(tar_of(*map(member, "abcde")), "a.tar", ["e"])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        for name in "abcd":
            pack.writestr(name, b"")
    with pytest.raises(ztw.ZtwError, match=r"a.zip: has more than 3 members"):
        open_zip(tmp_path / "a.zip")


def test_unpacking_stops_at_the_size_limit(monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_FILE", 3 << 20)
    packed, target = gzip.compress(bytes(8 << 20)), io.BytesIO()
    with (
        gzip.open(io.BytesIO(packed)) as unpacked,
        pytest.raises(ztw.ZtwError, match=r"^x.gz: unpacks to more than 3,145,728 bytes"),
    ):
        copy_bounded(unpacked, target, "x.gz")
    assert len(target.getvalue()) <= 3 << 20


def test_a_zip_of_huge_claimed_size_is_refused(monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        for name in "abc":
            pack.writestr(name, bytes(1 << 20))
    monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 2 << 20)
    with pytest.raises(ztw.ZtwError, match=r"a.zip: unpacks to more than 2,097,152 bytes"):
        open_zip(tmp_path / "a.zip")
    monkeypatch.setattr(archives, "LARGEST_FILE", 1 << 19)
    with pytest.raises(ztw.ZtwError, match=r"a.zip: a: unpacks to more than 524,288 bytes"):
        open_zip(tmp_path / "a.zip")


def test_a_zip_with_false_sizes_does_not_fill_memory(tmp_path):
    """200 MB of zeros, claimed to be 100 bytes in the zip's directory."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("bomb", bytes(200 << 20))
    content = path.read_bytes()
    assert content.count(struct.pack("<I", 200 << 20)) == 2
    path.write_bytes(content.replace(struct.pack("<I", 200 << 20), struct.pack("<I", 100)))
    with open_zip(path) as archive:
        tracemalloc.start()
        with pytest.raises(archives.UNREADABLE, match="Bad CRC-32"):
            read_zipped(archive, "bomb")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 10 << 20


def test_an_encrypted_member_is_unreadable(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as pack:
        pack.writestr("a", b"content")
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(archives.UNREADABLE, match="password required"):
        read_zipped(open_zip(path), "a")


def test_the_limits_allow_all_built_in_data_sets():
    assert archives.LARGEST_FILE > 2 * 248_100_043, "Tiny ImageNet's zip"
    assert archives.MOST_MEMBERS > 4 * 120_609, "its members"
