"""Files written whole or not at all, sealed with their SHA-256 where jobs read them. Imports no torch."""

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
# What systems leave in folders that they serve or unpack, in lower case
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
    """Whether a file or folder of this name is a system's, and none of the user's (macOS: `._` before a name)."""
    return name.casefold() in LEFT_BEHIND or name.startswith("._")


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Give a scratch path beside `path` and move it there when the block ends well."""
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
    """As `atomic`, and the file's SHA-256 is written beside it: what another job will read."""
    with atomic(path) as scratch:
        yield scratch
        path = Path(path)
        # before the file: a run that ends in between leaves a seal that does not fit, never one that is missing
        write_text(_seal(path), f"{sha256(scratch)}  {path.name}\n")


@contextmanager
def open_locked(path: Path, report: Report) -> Iterator[IO[bytes]]:
    """Open a file for appending and hold its lock, after waiting for it; an empty file is removed in the end.

    Where there are no locks (Windows, some network file systems), `report` gets a Note and nothing is waited for.
    """
    while True:
        with path.open("ab") as file:
            _wait_for_turn(file, path, report)
            if not _is_at(file, path):
                continue  # the process before has removed or moved it
            try:
                yield file
            finally:
                with suppress(OSError):  # systems that remove no open file
                    file.flush()
                    if _is_at(file, path) and not os.fstat(file.fileno()).st_size:
                        path.unlink()
            return


def _wait_for_turn(file: IO[bytes], path: Path, report: Report) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report(f"waiting for another job, which holds {path.name}")
        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        report(Note(f"warning: {path}: no file locks here ({why}); let only one job at a time write here"))


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def check_seal(path: Path | str, hint: str = RUN_AGAIN) -> None:
    """Raise ZtwError unless a file is what `sealed` wrote; one without a seal came from elsewhere and passes."""
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
    """Where a file's SHA-256 is, as `sha256sum --check` reads it."""
    return path.with_name(f".{path.name}.sha256")


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_sealed(path: Path | str, text: str) -> None:
    """Write a text file, sealed."""
    with sealed(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: Path | str, content: Any) -> None:
    """Write readable JSON, sealed, keys sorted; NaN stays NaN, which readers other than Python refuse."""
    write_sealed(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path | str, hint: str = RUN_AGAIN) -> Any:
    """Read JSON; raises ZtwError naming the file when it is missing, broken or altered, then with `hint`."""
    check_seal(path, hint)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ZtwError(f"{path}: cannot be read ({reason(error, path)})") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def data_root(configured: str | None = None, home: bool = True) -> Path:
    """Where data sets live: the config's data.root, else $ZTW_DATA, else the user's cache directory.

    home: whether there is a home folder. Raises ZtwError when none is known, and it would be needed.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or ("~/.cache" if home else "")
    given = configured or os.environ.get("ZTW_DATA") or (cache and f"{cache}/ztw")
    try:
        if given:
            return Path(given).expanduser()
    except RuntimeError:
        pass
    raise ZtwError(
        "data root: this user has no home folder that can be written to; set data.root in the config, or ZTW_DATA,"
        " to a folder of yours"
    )
