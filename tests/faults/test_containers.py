"""Fault 10: a container with few cores (see tests/test_machine.py), a user without an entry in passwd."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from tiny_study import ROOT, SMALL, command, copy_of, errors, tables

# A user namespace with the user 12345, who has no entry in passwd
NOBODY = ["unshare", "--user", "--map-user=12345", "--map-group=12345", "env"]
NOBODY += [f"--unset={name}" for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME")]


@pytest.fixture
def nobody() -> list[str]:
    if shutil.which("unshare") is None or subprocess.run([*NOBODY, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here: a user without an entry in passwd was not tried")
    return NOBODY


def test_a_user_without_home_or_name_needs_a_data_root_and_nothing_else(nobody, finished, tmp_path, tell):
    folder = copy_of(finished, tmp_path)
    asks = subprocess.run(
        [*nobody, "--unset=ZTW_DATA", *command(SMALL)], cwd=folder, capture_output=True, text=True
    )
    assert asks.returncode == 1
    assert errors(asks.stdout) == asks.stdout.splitlines()
    assert "set data.root in the config, or ZTW_DATA" in asks.stdout
    # MLflow, Matplotlib and Snakemake need a user name or a home folder
    (folder / "results/tiny/digits/resnet8/seed0/runs.json").unlink()
    done = subprocess.run([*nobody, *command(SMALL)], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ track_cell" in done.stdout
    assert tables(folder) == tables(finished)
    tell("10 no HOME, no passwd", "without and with ZTW_DATA", "refused in one line; runs, same tables")


def test_cores_come_from_the_control_group(tmp_path, monkeypatch, tell):
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from machine import usable_cores

    here = usable_cores()
    for name, text in {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == 1
    tell("10 cores of a container", f"a quota of 1 core on a machine of {here}", "1 core is used")
