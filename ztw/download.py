"""Download files with a timeout and a checksum, and resume interrupted downloads. Imports no torch."""

from __future__ import annotations

import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ztw.errors import ZtwError, reason
from ztw.files import open_locked
from ztw.files import sha256 as digest
from ztw.progress import Report

TIMEOUT = 30.0  # longest wait for a response, in seconds
CHUNK = 1 << 20  # bytes


@contextmanager
def bounded_wait() -> Iterator[None]:
    """Limit how long downloads by other libraries wait for a response."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def download(url: str, target: Path, sha256: str | None, report: Report = lambda text: None) -> None:
    """Download a file, and report the progress every two seconds.

    An interrupted download leaves .NAME.part beside the target. The next call resumes it.

    Args:
        url: https or file; http only with `sha256`.
        target: path of the file.
        sha256: expected checksum in hexadecimal; None if the caller checks the content.
        report: receives the lines of progress.

    Raises:
        ZtwError: if the download fails or ends early, or the checksum differs.
    """
    _check_scheme(url, sha256)
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_locked(part, report) as stream:  # another job may be downloading the same file
            if not target.exists():
                _receive(url, stream, report)
                stream.flush()
                _check(part, url, sha256)
                part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        why = reason(error, url, target, part)[:160]
        raise ZtwError(f"{url}: cannot be downloaded to {target} ({why})") from error


def _check_scheme(url: str, sha256: str | None) -> None:
    """Raise ZtwError for other schemes, and for http without a checksum."""
    scheme = url.partition(":")[0].lower()
    if scheme not in ("https", "http", "file"):
        raise ZtwError(f"{url}: must be an https, http or file URL")
    if scheme == "http" and sha256 is None:
        raise ZtwError(f"{url}: plain http needs a SHA-256; use https")


def _receive(url: str, stream: IO[bytes], report: Report) -> None:
    """Append the missing bytes to the partial file; start again if the server does not support ranges."""
    done, last = os.fstat(stream.fileno()).st_size, time.monotonic()
    with _request(url, done) as response:
        if not (response.headers.get("Content-Range") or "").startswith(f"bytes {done}-"):
            stream.truncate(0)
            done = 0
        rest = response.headers.get("Content-Length")
        total = done + int(rest) if rest else 0
        while chunk := response.read(CHUNK):
            stream.write(chunk)
            done += len(chunk)
            if time.monotonic() - last > 2:
                last = time.monotonic()
                report(f"downloading {url}: {done / 1e6:.0f}{f' of {total / 1e6:.0f}' if total else ''} MB")
    if done < total:
        raise ZtwError(f"{url}: ended early, {done} of {total} bytes; run again to resume")


def _request(url: str, start: int) -> Any:
    """Request a file from byte `start` on."""
    headers = {"User-Agent": "ztw", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except ValueError as error:
        raise ZtwError(f"{url}: not a URL ({error})") from error
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        return _request(url, 0)  # the server's file is not longer than `start`: request the complete file


def _check(part: Path, url: str, expected: str | None) -> None:
    if expected is not None and (found := digest(part)) != expected.lower():
        part.unlink()
        raise ZtwError(
            f"{url}: not the expected file (SHA-256 {found[:12]}..., expected {expected[:12].lower()}...)"
        )
