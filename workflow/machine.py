"""What the machine grants this run: its cores, and a user with a name and a home."""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Iterator
from pathlib import Path

from ztw.files import data_root


def usable_cores(root: Path = Path("/")) -> int:
    """The cores this process may use: its affinity, less where a control group grants fewer.

    `docker run --cpus=2` sets a quota of time and leaves all cores in sight. root: of the file system.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that each control group of this process is granted, versions 1 and 2."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mounts = (f"{controllers}", "cpu", "cpu,cpuacct") if controllers else ("", "unified")
            for mount in mounts:
                yield from _granted(root / "sys/fs/cgroup" / mount, group)


def _granted(mount: Path, group: str) -> Iterator[float]:
    """From a group up to the mount: inside a container the group's own name may not be there."""
    place = mount / group.strip("/")
    for folder in (place, *(parent for parent in place.parents if parent.is_relative_to(mount))):
        with contextlib.suppress(OSError, ValueError):  # "max", no such file
            if (one := folder / "cpu.max").exists():
                quota, period = map(int, one.read_text().split())
            else:
                quota = int((folder / "cpu.cfs_quota_us").read_text())
                period = int((folder / "cpu.cfs_period_us").read_text())
            if quota > 0:  # -1: no limit
                yield quota / period


def ensure_user(configured_root: str | None) -> None:
    """Give the tools what a user without an entry in passwd lacks: a name, and a home folder for their caches.

    configured_root: the study's data.root. Raises ZtwError when no place for data sets is given either.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
    with contextlib.suppress(RuntimeError, OSError):  # no home; or HOME=/ in a container
        cache = Path.home() / ".cache"
        cache.mkdir(exist_ok=True)
        if os.access(cache, os.W_OK):
            return
    data_root(configured_root, home=False)
    home = Path(".snakemake/home").absolute()
    home.mkdir(parents=True, exist_ok=True)
    os.environ["HOME"] = str(home)
