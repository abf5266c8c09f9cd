"""Test that a run uses the cores of its container, and works for a user without a name or home."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

import ztw
from ztw.files import data_root

ROOT = Path(__file__).parents[1]


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    import machine

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return machine


def files(folder: Path, content: dict[str, str]) -> Path:
    for name, text in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


V1 = "12:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab\n0::/system.slice\n"


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "12800000 100000\n"}, 64),
        (  # the smallest quota of a group and its parents
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
            },
            4,
        ),
        (  # version 1 on a host
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (  # version 1 in a container, where the group's path is a path of the host
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
    ],
)
def test_cores_are_those_the_control_groups_grant(machine, tmp_path, content, cores):
    assert machine.usable_cores(files(tmp_path, content)) == cores


def without_home(monkeypatch, home: str | None) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "ZTW_DATA", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    if home is None:

        def nobody(_):
            raise KeyError

        monkeypatch.setattr("pwd.getpwuid", nobody)
    else:
        monkeypatch.setenv("HOME", home)


@pytest.mark.parametrize("home", [None, "/proc", "/nowhere"])
def test_a_user_without_a_home_gets_one_below_the_folder_of_the_run(machine, monkeypatch, tmp_path, home):
    monkeypatch.chdir(tmp_path)
    without_home(monkeypatch, home)
    machine.ensure_user("data")
    assert Path(os.environ["HOME"]) == tmp_path / ".snakemake/home"
    assert Path.home().is_dir()
    assert getpass.getuser()


def test_without_a_home_a_data_root_is_required(machine, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    without_home(monkeypatch, None)
    with pytest.raises(ztw.ZtwError, match=r"no writable home folder; set data.root .*ZTW_DATA"):
        machine.ensure_user(None)
    with pytest.raises(ztw.ZtwError, match="no writable home folder"):
        data_root()
    with pytest.raises(ztw.ZtwError, match="no writable home folder"):
        data_root("~/data")
    assert data_root("/data") == Path("/data")
    monkeypatch.setenv("ZTW_DATA", "here")
    machine.ensure_user(None)


def test_a_home_stays_as_it_is(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ZTW_DATA", raising=False)
    machine.ensure_user(None)
    assert os.environ["HOME"] == str(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data_root() == tmp_path / ".cache/ztw"
