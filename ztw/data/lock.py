"""Lock a data set while a job prepares it, so that several jobs prepare it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ztw.files import is_at
from ztw.progress import Note, Report


@contextmanager
def locked(path: Path, report: Report) -> Iterator[None]:
    """Hold the lock file `path`, after waiting for it. Without file locks, report that and continue.

    The file exists only while a job holds the lock.
    """
    while True:
        with path.open("a") as file:
            _wait_for_turn(file, report)
            if not is_at(file, path):
                continue  # the previous holder has removed it
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _wait_for_turn(file: IO[str], report: Report) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        report(Note("warning: no file locks on this system; prepare a data set in one job at a time"))
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report("waiting for another job that is preparing this data set")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems
        report(Note(f"warning: {file.name}: no file locks here ({error.strerror}); continuing without"))
