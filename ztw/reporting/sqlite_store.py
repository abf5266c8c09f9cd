"""MLflow's sqlite file in a study's folder: whether it is whole, and where its artifacts are. Imports no mlflow.

MLflow writes down absolute places. A study's folder may be moved or copied, so they are put right whenever the
store is opened.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

ARTIFACTS = "mlflow-artifacts"  # below the study's folder
# Without these it is no store; MLflow makes them first, and then many changes of them
TABLES = {"experiments", "runs", "metrics", "latest_metrics", "params", "tags", "alembic_version"}


# What sqlite keeps beside a file: changes that were interrupted, which it takes back at the next opening
BESIDE = ("-journal", "-wal", "-shm")


def is_whole(database: Path) -> bool:
    """Whether the file is a store that nothing broke; the one of an interrupted first start may still be half made."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)
        ) as store:
            found = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
            if not found >= TABLES or not store.execute("SELECT 1 FROM alembic_version").fetchone():
                return False
            return store.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except sqlite3.OperationalError as error:
        return "locked" in str(error)  # somebody is writing to it
    except sqlite3.DatabaseError:
        return False


def holds_runs(database: Path) -> bool:
    """Whether a whole store has runs: its making was then finished once. True where somebody is writing to it."""
    try:
        with contextlib.closing(sqlite3.connect(database)) as store:
            return store.execute("SELECT 1 FROM runs").fetchone() is not None
    except sqlite3.OperationalError:
        return True


def put_aside(database: Path) -> Path:
    """Move a store that cannot be used out of the way, with what sqlite keeps beside it; nothing is deleted."""
    number = 1
    while (target := database.with_name(f"{database.name}.broken{number}")).exists():
        number += 1
    for suffix in BESIDE:  # left there, sqlite would change the next store by it
        if (file := database.with_name(database.name + suffix)).exists():
            file.rename(target.with_name(target.name + suffix))
    return database.rename(target)


def relocate(database: Path) -> bool:
    """Make the artifacts' places those beside the file as it lies now; returns whether they had been others."""
    if not database.exists():
        return False
    here = (database.parent / ARTIFACTS).absolute().as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as store, store:
        before = {
            place
            for (place,) in store.execute(
                "SELECT artifact_location FROM experiments WHERE experiment_id != 0"
            )
            if place and place.rstrip("/").endswith(f"/{ARTIFACTS}")
        }
        moved = sorted(place for place in before if _as_uri(place) != here)
        for place in moved:
            store.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (here, place)
            )
            store.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE artifact_uri LIKE ? ESCAPE '\\'",
                (here, len(place) + 1, _like(place) + "/%"),
            )
    return bool(moved)


def _as_uri(place: str) -> str:
    return place if "://" in place else Path(place).as_uri()


def _like(text: str) -> str:
    for char in "\\%_":
        text = text.replace(char, f"\\{char}")
    return text
