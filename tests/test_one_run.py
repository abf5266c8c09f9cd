"""Test that a folder has one run at a time, also without file locks."""

from __future__ import annotations

import base64
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import ztw

ROOT = Path(__file__).parents[1]
RUN_ID = '{"event": "info", "message": "SLURM run ID: 1234-abcd"}\n'
WITHOUT_LOCKS = [errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK]


@pytest.fixture
def only_run(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from one_run import only_run

    monkeypatch.chdir(tmp_path)
    return only_run


def refuse_locks(monkeypatch, code: int) -> None:
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)


def test_a_second_run_in_one_folder_is_refused(only_run):
    with (
        only_run(Console()),
        pytest.raises(ztw.ZtwError, match=rf"another run uses .*process {os.getpid()}\)"),
        only_run(Console()),
    ):
        pass


@pytest.mark.parametrize("code", WITHOUT_LOCKS, ids=errno.errorcode.__getitem__)
def test_without_file_locks_it_warns_and_runs(only_run, monkeypatch, capsys, code):
    refuse_locks(monkeypatch, code)
    with only_run(Console()):
        pass
    warning = capsys.readouterr().out
    assert warning.startswith("warning: results/.lock: the file system has no locks (")
    assert warning.count("\n") == 1


def test_without_file_locks_a_run_on_this_machine_is_still_found(only_run, monkeypatch, tmp_path):
    refuse_locks(monkeypatch, errno.ENOLCK)
    script = tmp_path / "reproduce.py"
    script.write_text("input()")
    with subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE) as other:
        Path("results").mkdir()
        Path("results/.lock").write_text(str(other.pid))
        with pytest.raises(ztw.ZtwError, match=f"process {other.pid}"), only_run(Console()):
            pass
        other.communicate(b"\n")
    with only_run(Console()):
        assert Path("results/.lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("folder", [".", "elsewhere"])
def test_processes_of_a_killed_run_are_stopped(only_run, tmp_path, folder):
    """Two runs must not write the same files. A run in another folder continues."""
    own = {**os.environ, "ZTW_RUN": str((tmp_path / folder).resolve())}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=own) as orphan:
        with only_run(Console()):
            assert (orphan.poll() is None) == (folder == "elsewhere")
        orphan.communicate()


def test_a_lock_of_snakemake_is_removed_unless_it_is_running(only_run, tmp_path):
    lock = Path(".snakemake/locks/0.input.lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    (tmp_path / "snakemake").write_text("input()")
    command = [sys.executable, str(tmp_path / "snakemake")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as snakemake:
        match = rf"a snakemake run uses this folder \(process {snakemake.pid}\)"
        with pytest.raises(ztw.ZtwError, match=match), only_run(Console()):
            pass
        snakemake.communicate(b"\n")
    with only_run(Console()):
        assert not lock.exists()


def test_incomplete_files_of_a_killed_run_are_removed(only_run, tmp_path):
    from one_run import remove_scratch

    kept = [".a.json.sha256", "a.json", "mlflow.db.broken1", "deep/.hidden"]
    store = ".mlflow.db.4711"
    for name in [*kept, ".a.json.4711", "deep/.step-7.safetensors.12", store, f"{store}-journal"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    remove_scratch(tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == set(kept)


@pytest.fixture
def scancel(monkeypatch, tmp_path):
    """A stub of scancel that records its arguments, and a function that sets its exit status."""
    stub = tmp_path / "bin/scancel"
    stub.parent.mkdir()
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")

    def answers(status: int) -> Path:
        asked = tmp_path / "asked"
        stub.write_text(f'#!/bin/sh\necho "$@" >> {asked}\necho "Unable to contact" >&2\nexit {status}\n')
        stub.chmod(0o755)
        return asked

    return answers


def test_slurm_jobs_of_the_last_run_are_cancelled(scancel, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from one_run import cancel_cluster_jobs

    asked = scancel(0)
    log = tmp_path / "events.jsonl"
    cancel_cluster_jobs(log)
    log.write_text('{"event": "info", "message": "Building DAG of jobs..."}\n')
    cancel_cluster_jobs(log)
    assert not asked.exists(), "it left nothing"
    log.write_text(RUN_ID)
    cancel_cluster_jobs(log)
    assert asked.read_text() == "--name 1234-abcd\n"


def test_a_failed_scancel_is_an_error(scancel, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from one_run import cancel_cluster_jobs

    scancel(1)
    log = tmp_path / "events.jsonl"
    log.write_text(RUN_ID)
    with pytest.raises(
        ztw.ZtwError, match=r"\(Unable to contact\); cancel them \(scancel --name 1234-abcd\)"
    ):
        cancel_cluster_jobs(log)


@pytest.mark.parametrize("kind", ["metadata", "incomplete", None])
def test_results_are_known_by_a_record_of_snakemake(only_run, kind):
    """A record, or the marker of an unfinished job. Long names are in parts."""
    from one_run import check_known

    study, name = Path("results/tiny"), f"results/tiny/digits/{'long' * 50}/seed0/backbone.safetensors"
    others = [study / "mlflow-artifacts/model.safetensors", study / "seed0/checkpoints/step-7.safetensors"]
    for path in (Path(name), *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if kind is None:
        with pytest.raises(ztw.ZtwError, match=r"^results/tiny: .* no record of how .* were made; copy"):
            check_known(study)
        return
    encoded = base64.urlsafe_b64encode(name.encode()).decode()
    record = Path(".snakemake", kind, f"@{encoded[:200]}", encoded[200:])
    record.parent.mkdir(parents=True)
    record.touch()
    check_known(study)
