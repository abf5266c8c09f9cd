"""Fetching files over the network: bounded in waiting, checked, going on where it broke off. Imports no torch."""

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

TIMEOUT = 30.0  # seconds without an answer
CHUNK = 1 << 20  # bytes


@contextmanager
def bounded_wait() -> Iterator[None]:
    """Bound how long downloads by other libraries wait for an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def download(url: str, target: Path, sha256: str | None, report: Report = lambda text: None) -> None:
    """Put what a URL gives at `target`, saying every two seconds how much there is.

    url: https or file, or http with a sha256; sha256: in hexadecimal, None where the caller checks what the
    file holds. What a call that broke off has got stays beside the target, in .NAME.part; the next call asks
    for the rest. Raises ZtwError when it cannot be had, ends early or is another file.
    """
    _check_scheme(url, sha256)
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_locked(part, report) as stream:  # another job may be fetching the same
            if not target.exists():
                _receive(url, stream, report)
                stream.flush()
                _check(part, url, sha256)
                part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        why = reason(error, url, target, part)[:160]
        raise ZtwError(f"{url}: cannot be downloaded to {target} ({why})") from error


def _check_scheme(url: str, sha256: str | None) -> None:
    """Raise ZtwError for what nobody vouches for: neither the connection nor a checksum."""
    scheme = url.partition(":")[0].lower()
    if scheme not in ("https", "http", "file"):
        raise ZtwError(f"{url}: not a URL of https, http or file")
    if scheme == "http" and sha256 is None:
        raise ZtwError(f"{url}: plain http needs a SHA-256; use https")


def _receive(url: str, stream: IO[bytes], report: Report) -> None:
    """Append the rest of a file to the part of it there is; a server that knows no ranges sends all again."""
    done, last = os.fstat(stream.fileno()).st_size, time.monotonic()
    with _answer(url, done) as answer:
        if not (answer.headers.get("Content-Range") or "").startswith(f"bytes {done}-"):
            stream.truncate(0)
            done = 0
        rest = answer.headers.get("Content-Length")
        total = done + int(rest) if rest else 0
        while chunk := answer.read(CHUNK):
            stream.write(chunk)
            done += len(chunk)
            if time.monotonic() - last > 2:
                last = time.monotonic()
                report(f"downloading {url}: {done / 1e6:.0f}{f' of {total / 1e6:.0f}' if total else ''} MB")
    if done < total:
        raise ZtwError(f"{url}: ended early, {done} of {total} bytes; run again to go on from there")


def _answer(url: str, start: int) -> Any:
    """The open answer with a file from byte `start` on, or with all of it."""
    headers = {"User-Agent": "ztw", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except ValueError as error:
        raise ZtwError(f"{url}: not a URL ({error})") from error
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        return _answer(url, 0)  # there are no more bytes than we have: another file, or all of this one


def _check(part: Path, url: str, expected: str | None) -> None:
    if expected is not None and (found := digest(part)) != expected.lower():
        part.unlink()
        raise ZtwError(
            f"{url}: not the expected file (SHA-256 {found[:12]}..., expected {expected[:12].lower()}...)"
        )
