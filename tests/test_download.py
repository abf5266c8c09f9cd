"""Test downloads: resumed after an interruption, checked, and never complete by mistake."""

from __future__ import annotations

import hashlib
import itertools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

import ztw
from ztw.download import download

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serve CONTENT; ranges: whether ranges are supported; cut: number of bytes after which a response ends."""

    ranges, cut, silent, moved_to = True, len(CONTENT), False, ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []  # the range of each request
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers["Range"])
        if server.silent:
            server.over.wait(10)
            return
        if server.moved_to:
            self.send_response(302)
            self.send_header("Location", server.moved_to)
            self.end_headers()
            return
        if self.path != "/file.bin":
            self.send_error(404)
            return
        text = self.headers["Range"] if server.ranges else None
        start = int(text.removeprefix("bytes=").removesuffix("-")) if text else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if text else 200)
        if text:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + server.cut])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "file.bin"


def files(target) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def interrupt(server: Server, target) -> None:
    server.cut = 300_000
    with pytest.raises(ztw.ZtwError, match="ended early, 300000 of 1024000 bytes; run again"):
        download(server.url, target, SHA256)
    assert files(target) == [".file.bin.part"]
    server.cut = len(CONTENT)


def test_an_uninterrupted_download(server, target):
    download(server.url, target, SHA256.upper())
    assert target.read_bytes() == CONTENT
    assert files(target) == ["file.bin"]
    download(server.url, target, SHA256)
    assert server.asked == [None], "what is there is not asked for"


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_resumes(server, target, ranges):
    interrupt(server, target)
    server.ranges = ranges
    download(server.url, target, SHA256)
    assert server.asked == [None, "bytes=300000-"]
    assert target.read_bytes() == CONTENT
    assert files(target) == ["file.bin"]


def test_a_download_may_be_interrupted_often(server, target):
    server.cut = 300_000
    for _ in range(3):
        with pytest.raises(ztw.ZtwError, match="ended early"):
            download(server.url, target, SHA256)
    download(server.url, target, SHA256)
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_part_without_missing_bytes_is_downloaded_again(server, target, more):
    target.parent.mkdir()
    (target.parent / ".file.bin.part").write_bytes(CONTENT + more)
    download(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT


def test_a_part_of_another_file_is_not_used(server, target):
    target.parent.mkdir()
    (target.parent / ".file.bin.part").write_bytes(b"another file")
    with pytest.raises(ztw.ZtwError, match=rf"file.bin: not the expected file .*, expected {SHA256[:12]}"):
        download(server.url, target, SHA256)
    assert files(target) == []
    download(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT


def test_two_jobs_fetch_one_file_once(server, target):
    jobs = [threading.Thread(target=download, args=(server.url, target, SHA256)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert server.asked == [None]
    assert files(target) == ["file.bin"]


def test_a_part_that_another_job_removes_meanwhile_is_started_again(server, target, monkeypatch):
    """The file is deleted while this download waits for the lock with the file open."""
    part = target.with_name(".file.bin.part")
    waits = iter([part.unlink, lambda: None])
    monkeypatch.setattr("ztw.files._wait_for_turn", lambda *_: next(waits)())
    download(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT
    assert files(target) == ["file.bin"]


def test_a_silent_server_times_out(server, target, monkeypatch):
    monkeypatch.setattr("ztw.download.TIMEOUT", 0.05)
    server.silent = True
    with pytest.raises(ztw.ZtwError, match=r"file.bin: cannot be downloaded to .* \(timed out\)"):
        download(server.url, target, SHA256)
    assert files(target) == []


def test_failures_give_one_line_errors(server, target):
    for url, message in {
        server.url + "s": r"file.bins: cannot be downloaded to .*file.bin \(HTTP Error 404: Not Found\)",
        "http://127.0.0.1:1/x": r"cannot be downloaded to .* \(.*refused",
        (target.parent / "none").as_uri(): r"none: cannot be downloaded to .* \(.*No such file",
        "https://[x/y": r"not a URL",
    }.items():
        with pytest.raises(ztw.ZtwError, match=message) as caught:
            download(url, target, SHA256)
        assert "\n" not in str(caught.value)
        assert files(target) == []


@pytest.mark.parametrize("url", ["my/file.th", "ftp://127.0.0.1/x", "data:,x", "-x", "", "jar:file:///x"])
def test_only_https_http_and_file_are_allowed(target, url):
    with pytest.raises(ztw.ZtwError, match="must be an https, http or file URL"):
        download(url, target, SHA256)
    assert not target.parent.exists()


def test_plain_http_needs_a_checksum(server, target):
    with pytest.raises(ztw.ZtwError, match=r"file.bin: plain http needs a SHA-256; use https"):
        download(server.url, target, None)
    assert server.asked == []


def test_a_server_cannot_point_to_a_file_of_this_machine(server, target, tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    server.moved_to = (tmp_path / "secret").as_uri()
    with pytest.raises(ztw.ZtwError, match="cannot be downloaded"):
        download(server.url, target, SHA256)
    assert not target.exists()


def test_a_file_that_is_here_is_copied(tmp_path, target):
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    target.parent.mkdir()
    (target.parent / ".file.bin.part").write_bytes(CONTENT[:10])
    download(source.as_uri(), target, SHA256)
    assert target.read_bytes() == CONTENT


def test_progress_every_two_seconds(server, target, monkeypatch):
    seconds = itertools.count(0, 1.5)
    monkeypatch.setattr("ztw.download.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr("ztw.download.CHUNK", 100_000)
    said: list[str] = []
    download(server.url, target, SHA256, said.append)
    assert said[0] == f"downloading {server.url}: 0 of 1 MB"
    assert 2 <= len(said) <= 5
