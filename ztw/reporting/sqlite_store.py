"""Repair the MLflow database in a study's folder if it is broken or was moved. Imports no mlflow."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

# Errors of SQLite for a file that is damaged, is not a database, or lacks a table
BROKEN = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")
# Suffixes of the database and of SQLite's journals
BESIDE = ("", "-journal", "-wal", "-shm")


def artifacts_of(database: Path) -> str:
    """Return the folder of the runs' artifacts as a URI, because MLflow reads %20 in a path as a space."""
    return (database.parent / "mlflow-artifacts").absolute().as_uri()


def prepare(database: Path) -> str | None:
    """Repair a study's database before MLflow opens it.

    A broken database is renamed. If the study's folder was moved, the paths of artifacts in the database are corrected,
    because MLflow stores absolute paths.

    Returns:
        What was done, for the user; None = nothing.
    """
    if not database.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)) as store, store:
            (state,) = store.execute("PRAGMA quick_check(1)").fetchone()
            if state == "ok":
                return _relocate(store, artifacts_of(database))
    except sqlite3.DatabaseError as error:
        if not getattr(error, "sqlite_errorname", "").startswith(BROKEN):  # locked, or not writable
            return None
        state = str(error)
    kept = _set_aside(database).name
    return f"{database} is broken ({state}): kept as {kept}, and its runs are logged again from the files"


def _relocate(store: sqlite3.Connection, here: str) -> str | None:
    elsewhere = "SELECT experiment_id FROM experiments WHERE artifact_location LIKE '%/mlflow-artifacts'"
    where = f"WHERE experiment_id IN ({elsewhere} AND artifact_location != :here)"
    store.execute(
        f"UPDATE runs SET artifact_uri = :here || '/' || run_uuid || '/artifacts' {where}", {"here": here}
    )
    moved = store.execute(
        f"UPDATE experiments SET artifact_location = :here {where}", {"here": here}
    ).rowcount
    return f"the study was moved: the files of its runs are in {here}" if moved else None


def _set_aside(database: Path) -> Path:
    number = 1
    while (target := database.with_name(f"{database.name}.broken{number}")).exists():
        number += 1
    for suffix in BESIDE:  # SQLite would apply a journal to the next database of this name
        if (file := database.with_name(database.name + suffix)).exists():
            file.rename(target.with_name(target.name + suffix))
    return target
