"""Fault 3: the disk runs full in each stage. A clear error; incomplete files are detected; the next run continues."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_study import SMALL, command, errors, has_started, run, shown, tables

from ztw.errors import ZtwError
from ztw.files import check_seal

# From the last stage to the first, so that the inputs of each stage exist
STAGES = ["plot_figures", "aggregate", "compare_methods", "track_cell", "measure_latency", "evaluate"]
STAGES += ["fit_ensembles", "predict", "train_network", "train_ics", "train_backbone"]


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small disk; skip the test if that is not possible."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here (that takes root): full disks were not tried")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> None:
    """Fill the disk to the last byte."""
    with open(disk / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(1 << 16)):
            pass
    with open(disk / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(b"0"):
            pass


def test_a_disk_that_runs_full_in_any_stage(finished, tmp_path, tell):
    with small_disk(tmp_path / "disk", "200m") as disk:
        folder = shutil.copytree(finished, disk / "run")
        for stage in STAGES:
            arguments = [*command(SMALL), "--", "--forcerun", stage, "--until", stage]
            process = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, text=True)
            _wait_for_job(folder, stage, process)
            fill(disk)
            output, _ = process.communicate(timeout=900)
            assert process.returncode != 0, f"{stage}: {output}"
            told = errors(output)
            assert 1 <= len(told) <= 2, f"{stage}: {output}"
            assert any("space left on" in line for line in told), f"{stage}: {output}"
            (disk / "filler").unlink()
            _check_no_incomplete_file(folder)
        done = run(folder, SMALL)
        assert done.returncode == 0, shown(done)
        assert tables(folder) == tables(finished)
    tell(
        "3 disk full",
        f"in {len(STAGES)} stages, then once more",
        "a clear line each, no half file; same tables",
    )


def _wait_for_job(folder: Path, stage: str, process: subprocess.Popen) -> None:
    began = time.time()
    while not has_started(folder / "results/tiny/logs", stage, began):
        assert process.poll() is None, f"{stage}: {process.communicate()[0]}"
        assert time.time() < began + 900
        time.sleep(0.01)


def _check_no_incomplete_file(folder: Path) -> None:
    for seal in (folder / "results/tiny").rglob(".*.sha256"):
        path = seal.with_name(seal.name[1:].removesuffix(".sha256"))
        with contextlib.suppress(ZtwError):  # a detected incomplete file is allowed
            check_seal(path)
    for path in (folder / "results/tiny").rglob("*"):
        assert not path.is_file() or path.stat().st_size or path.suffix == ".log", f"{path} is empty"


def test_a_data_root_that_is_full(tmp_path, monkeypatch, tell):
    with small_disk(tmp_path / "disk", "64k") as disk:
        monkeypatch.setenv("ZTW_DATA", str(disk))
        wanted = ("--", "results/tiny/data/digits/train.json")
        failed = run(tmp_path, SMALL, *wanted)
        assert failed.returncode != 0
        (line,) = errors(failed.stdout)
        assert "prepare_dataset  digits-train: " in line
        assert "No space left on device" in line
        assert not list(disk.rglob("*.npy*")), "nothing is left that takes its space"
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        done = run(tmp_path, SMALL, *wanted)
        assert done.returncode == 0, shown(done)
    tell(
        "3 disk full",
        "of the data root, while decoding; then enlarged",
        "named in one line; nothing left; goes on",
    )
