"""A lock on making a data set ready: several jobs at once do it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ztw.files import is_at
from ztw.progress import Note, Report


@contextmanager
def locked(path: Path, report: Report) -> Iterator[None]:
    """Hold the lock that is the file `path`, after waiting for it; where there are no locks, say so and go on.

    The file is there only as long as somebody holds the lock.
    """
    while True:
        with path.open("a") as file:
            _wait_for_turn(file, report)
            if not is_at(file, path):
                continue  # the one before has removed it meanwhile
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _wait_for_turn(file: IO[str], report: Report) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        report(Note("warning: no file locks on this system; let only one job at a time prepare a data set"))
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report("waiting for another job that prepares the same data set")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems
        report(Note(f"warning: {file.name}: no file locks here ({error.strerror}); going on without"))
