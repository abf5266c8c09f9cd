"""Fault 5: two runs at once, in one folder or with one data root; a file system without locks."""

from __future__ import annotations

import subprocess
import sys

from tiny_study import ROOT, SMALL, command, copy_of, run, wait_for

# Raises the error of file locks on Lustre without -o flock
WITHOUT_LOCKS = """
import errno, fcntl, os, runpy, sys
def refuse(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_second_run_in_one_folder_is_refused(data_root, tmp_path, tell):
    first = subprocess.Popen(
        [*command(SMALL), "--", "results/tiny/data/digits/train.json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "results/tiny/logs/snakemake.log", first)
    second = run(tmp_path, SMALL)
    assert second.returncode == 1
    assert f"another run uses this folder (process {first.pid})" in second.stdout
    assert len(second.stdout.splitlines()) == 1
    output, _ = first.communicate(timeout=900)
    assert first.returncode == 0, output
    tell(
        "5 two runs, one folder",
        "the second while the first runs",
        "refused in one line; the first ends well",
    )


def test_two_folders_prepare_one_data_root_once(tmp_path, monkeypatch, tell):
    monkeypatch.setenv("ZTW_DATA", str(tmp_path / "data"))
    folders = [tmp_path / name for name in ("one", "two")]
    runs = []
    for folder in folders:
        folder.mkdir()
        arguments = [
            *command(SMALL),
            "--",
            *(f"results/tiny/data/digits/{s}.json" for s in ("train", "test")),
        ]
        runs.append(subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, text=True))
    for one in runs:
        output, _ = one.communicate(timeout=900)
        assert one.returncode == 0, output
    logs = [log for folder in folders for log in folder.rglob("logs/prepare_dataset/*.log")]
    assert len(logs) == 4
    decoded = sum("progress: decoding" in log.read_text() for log in logs)
    assert decoded == 1
    records = {path.read_text() for folder in folders for path in folder.rglob("data/digits/train.json")}
    assert len(records) == 1
    tell(
        "5 two folders, one data root",
        "started together, 4 jobs",
        f"decoded {decoded} time, both end well",
    )


def test_a_file_system_without_locks_gives_a_warning(finished, tmp_path, tell):
    folder = copy_of(finished, tmp_path)
    script = [sys.executable, "-c", WITHOUT_LOCKS, str(ROOT / "workflow/reproduce.py"), str(SMALL)]
    done = subprocess.run(script, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith("warning: results/.lock: the file system has no locks (Function not implemented)")
    assert "ztw" in "".join(rest)
    tell("5 no flock", "a run on a file system without locks", "one line of warning, goes on")
