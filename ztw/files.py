"""Write files atomically, with SHA-256 seals that jobs check when they read the files. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ztw.errors import ZtwError, reason
from ztw.progress import Note, Report

RUN_AGAIN = "delete it and run again"
# Files and folders that operating systems and file servers create by themselves, in lower case
LEFT_BEHIND = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot"),  # Synology
        *("@recycle", "@recently-snapshot"),  # QNAP
        "lost+found",  # Linux
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"),  # Windows
    }
)


def is_left_behind(name: str) -> bool:
    """Return whether operating systems create files or folders of this name (macOS: `._` before a name)."""
    return name.casefold() in LEFT_BEHIND or name.startswith("._")


def leads_back(link: os.DirEntry[str]) -> bool:
    """Return whether a symbolic link points to a folder that holds the link."""
    holder = os.path.realpath(os.path.dirname(link.path)) + os.sep
    return holder.startswith(os.path.realpath(link.path) + os.sep)


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it to `path` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def sealed(path: Path | str) -> Iterator[Path]:
    """Like `atomic`, and write the file's SHA-256 beside it. Use it for files that another job reads."""
    with atomic(path) as scratch:
        yield scratch
        path = Path(path)
        # written before the file is moved: an interrupted run leaves a wrong seal, never a missing one
        write_text(_seal(path), f"{sha256(scratch)}  {path.name}\n")


@contextmanager
def open_locked(path: Path, report: Report) -> Iterator[IO[bytes]]:
    """Open a file for appending, as soon as no other process holds its lock; delete it at the end if it is empty.

    Without file locks (Windows, some network file systems), `report` receives a Note and nothing is locked.
    """
    while True:
        with path.open("ab") as file:
            _wait_for_turn(file, path, report)
            if not _is_at(file, path):
                continue  # the previous holder of the lock has deleted or moved the file
            try:
                yield file
            finally:
                with suppress(OSError):  # some systems cannot delete an open file
                    file.flush()
                    if _is_at(file, path) and not os.fstat(file.fileno()).st_size:
                        path.unlink()
            return


def _wait_for_turn(file: IO[bytes], path: Path, report: Report) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report(f"waiting for another job to release {path.name}")
        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        report(Note(f"warning: {path}: the file system has no locks ({why}); run only one job at a time"))


def _is_at(file: IO[Any], path: Path) -> bool:
    """Return whether an open file is still at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def check_seal(path: Path | str, hint: str = RUN_AGAIN) -> None:
    """Raise ZtwError with `hint` if a file differs from its seal. A file without a seal passes."""
    path = Path(path)
    try:
        expected = _seal(path).read_text(encoding="utf-8", errors="replace").split(" ")[0]
    except FileNotFoundError:
        return
    if path.exists() and (found := sha256(path)) != expected:
        raise ZtwError(
            f"{path}: altered since it was written (SHA-256 {found[:12]}..., expected {expected[:12]}...); {hint}"
        )


def _seal(path: Path) -> Path:
    """Return the path of a file's SHA-256, in the format of `sha256sum --check`."""
    return path.with_name(f".{path.name}.sha256")


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_sealed(path: Path | str, text: str) -> None:
    """Write a text file and its seal."""
    with sealed(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path | str, content: Any) -> None:
    """Write indented JSON with sorted keys, and its seal. NaN is written as NaN, which only some readers accept."""
    write_sealed(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path | str, hint: str = RUN_AGAIN) -> Any:
    """Read a JSON file; raise ZtwError if it is missing, broken or altered. hint: what the user should do then."""
    check_seal(path, hint)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ZtwError(f"{path}: cannot be read ({reason(error, path)})") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def data_root(configured: str | None = None, home: bool = True) -> Path:
    """Return the folder of data sets: data.root of the config, else $ZTW_DATA, else the user's cache folder.

    Args:
        configured: data.root.
        home: whether the user has a home folder. If not, ZtwError is raised where the cache folder is needed.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or ("~/.cache" if home else "")
    given = configured or os.environ.get("ZTW_DATA") or (cache and f"{cache}/ztw")
    try:
        if given:
            return Path(given).expanduser()
    except RuntimeError:
        pass
    raise ZtwError(
        "data root: no writable home folder; set data.root in the config, or ZTW_DATA, to a folder that you can write"
        " to"
    )
