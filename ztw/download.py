"""Fetching files over the network: bounded in waiting, checked in length, reporting how far they are."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ztw.errors import ZtwError
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


def download(url: str, target: Path, report: Report = lambda text: None) -> None:
    """Copy what a URL gives to a file, saying every two seconds how much there is.

    Raises ZtwError for what is no URL and for an answer that ends early, OSError or HTTPException else.
    """
    try:
        answer = urllib.request.urlopen(url, timeout=TIMEOUT)
    except ValueError as error:
        raise ZtwError(f"{url}: not a URL ({error})") from error
    with answer, target.open("wb") as stream:
        total, done, last = int(answer.headers.get("Content-Length") or 0), 0, time.monotonic()
        while chunk := answer.read(CHUNK):
            stream.write(chunk)
            done += len(chunk)
            if time.monotonic() - last > 2:
                last = time.monotonic()
                report(f"downloading {url}: {done / 1e6:.0f}{f' of {total / 1e6:.0f}' if total else ''} MB")
    if done < total:
        raise ZtwError(f"{url}: ended early, {done} of {total} bytes")
