"""Fault 8: the MLflow store is lost, broken or locked, its experiment is deleted, or the study's folder is moved."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from tiny_study import SMALL, command, copy_of, has_started, jobs_done, run, shown, tables

COMPUTES = {"train_backbone", "train_ics", "train_network", "predict", "fit_ensembles", "evaluate"}
STORE = "results/tiny/mlflow.db"
# The target is the table, without figures. The table is deleted first, or Snakemake would not check its inputs.
CSV = "results/tiny/tables/accuracy_at_budget.csv"
TABLE = ("--", CSV)
RUNS = "results/tiny/digits/resnet8/seed0/runs.json"


def ask(database: Path, query: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as store, store:
        return [str(value) for (value,) in store.execute(query)]


def lose_runs(folder: Path) -> None:
    """Delete the ids of a cell's runs and the table, so that the next run needs the store."""
    for name in (RUNS, CSV):
        (folder / name).unlink(missing_ok=True)


def log_again(folder: Path) -> subprocess.CompletedProcess[str]:
    """Delete the ids of the cell's runs, and run again."""
    lose_runs(folder)
    done = run(folder, SMALL, *TABLE)
    assert done.returncode == 0, shown(done)
    assert not jobs_done(done.stdout) & COMPUTES
    assert "track_cell" in jobs_done(done.stdout)
    return done


def test_a_store_that_was_lost_is_created_again(finished, tmp_path, tell):
    folder = copy_of(finished, tmp_path)
    (folder / STORE).unlink()
    done = run(folder, SMALL)
    assert done.returncode == 0, shown(done)
    assert {"start_tracking", "track_cell"} <= jobs_done(done.stdout)
    assert not jobs_done(done.stdout) & COMPUTES
    assert tables(folder) == tables(finished)
    tell("8 store lost", "mlflow.db deleted", "created and logged again, nothing computed again, same tables")


def test_an_experiment_that_was_deleted_in_mlflow_is_restored(finished, tmp_path, tell):
    folder = copy_of(finished, tmp_path)
    ask(
        folder / STORE,
        "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'tiny' RETURNING name",
    )
    log_again(folder)
    assert ask(folder / STORE, "SELECT lifecycle_stage FROM experiments WHERE name = 'tiny'") == ["active"]
    assert tables(folder) == tables(finished)
    tell(
        "8 experiment deleted",
        "in MLflow's page, then a cell is logged",
        "restored with its runs, same tables",
    )


def test_a_broken_store_is_set_aside_and_filled_again(finished, tmp_path, tell):
    folder = copy_of(finished, tmp_path)
    content = (folder / STORE).read_bytes()
    (folder / STORE).write_bytes(content[:100] + bytes(len(content) - 100))
    done = run(folder, SMALL)
    assert done.returncode == 0, shown(done)
    assert "mlflow.db is broken" in done.stdout
    assert "kept as mlflow.db.broken1" in done.stdout
    assert (folder / f"{STORE}.broken1").stat().st_size == len(content)
    assert {"start_tracking", "track_cell"} <= jobs_done(done.stdout)
    assert not jobs_done(done.stdout) & COMPUTES
    assert tables(folder) == tables(finished)
    tell(
        "8 store broken", "mlflow.db overwritten with zeros", "kept aside, all logged again in the same call"
    )


@pytest.mark.parametrize("change", ["a run deleted", "a copy edited"])
def test_what_mlflow_lacks_is_logged_again_by_the_next_call(finished, tmp_path, change, tell):
    folder = copy_of(finished, tmp_path)
    (folder / CSV).unlink()
    if change == "a run deleted":
        ask(
            folder / STORE,
            "UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = 'ztw seed0' RETURNING run_uuid",
        )
    else:
        (copy,) = (folder / "results/tiny/mlflow-artifacts").glob("*/artifacts/ztw.json")
        copy.write_text(copy.read_text().replace("0", "1", 1))
    done = run(folder, SMALL)
    assert done.returncode == 0, shown(done)
    assert "digits/resnet8/seed0/metrics/ztw.json: " in done.stdout
    assert "the next call logs" in done.stdout
    assert tables(folder) == tables(finished)
    again = run(folder, SMALL)
    assert again.returncode == 0, shown(again)
    assert "track_cell" in jobs_done(again.stdout)
    assert not jobs_done(again.stdout) & COMPUTES
    assert "metrics/ztw.json" not in again.stdout
    assert tables(folder) == tables(finished)
    tell(
        "8 MLflow lacks a result", change, "named, the table from the file; the next call logs the cell again"
    )


def test_a_locked_store_is_waited_for(finished, tmp_path, tell):
    folder = copy_of(finished, tmp_path)
    lose_runs(folder)
    with contextlib.closing(sqlite3.connect(folder / STORE, isolation_level=None)) as store:
        store.execute("BEGIN EXCLUSIVE")
        process = subprocess.Popen([*command(SMALL), *TABLE], cwd=folder, stdout=subprocess.PIPE, text=True)
        began = time.time()
        while not has_started(folder / "results/tiny/logs", "track_cell", began):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(4)
        store.execute("COMMIT")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert tables(folder) == tables(finished)
    tell("8 store locked", "by another program, while a cell is logged", "waited for; same tables")


@pytest.mark.parametrize("name", ["moved", "with a space"])
def test_a_moved_folder_keeps_its_artifacts_inside(finished, tmp_path, name, tell):
    old = copy_of(finished, tmp_path)
    new = old.rename(tmp_path / name)
    shutil.rmtree(new / "results/tiny/mlflow-artifacts")
    log_again(new)
    assert not old.exists(), "nothing is written where the study was"
    here = list((new / "results/tiny/mlflow-artifacts").rglob("*.parquet"))
    assert here
    assert all(new.as_uri() in place for place in ask(new / STORE, "SELECT artifact_uri FROM runs"))
    assert tables(new) == tables(finished)
    tell(
        "8 folder moved",
        f"to {name!r}, then a cell is logged",
        "artifacts go to where it is now, same tables",
    )
