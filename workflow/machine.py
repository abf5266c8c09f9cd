"""What the machine gives a run: cores, GPUs, the characters of its terminal, a user with a name and a home."""

from __future__ import annotations

import codecs
import contextlib
import getpass
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product, takewhile
from pathlib import Path

from ztw.files import data_root

PLAIN = {"✓": "+", "±": "+-", "≈": "~", "…": "...", "─": "-", "≥": ">=", "≤": "<="}


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores this process may use: its affinity, less where a control group grants fewer.

    `docker run --cpus=2` sets a quota of time and leaves all cores in sight. root: of the file system.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that the control groups around this process grant, versions 1 and 2."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        mounts = ("cpu", controllers) if "cpu" in controllers.split(",") else ("", "unified")
        # up to the mount: inside a container the group's own name may not be there
        for mount, place in product(mounts, (Path(group), *Path(group).parents)):
            folder = root / "sys/fs/cgroup" / mount / str(place).strip("/")
            names = (
                ("cpu.max",) if (folder / "cpu.max").exists() else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
            with contextlib.suppress(OSError, ValueError):  # no such file; "max"
                quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
                if quota > 0:  # -1: no limit
                    yield quota / period


def count_gpus(device: str) -> int:
    """Count the GPUs for a study's jobs, without importing torch: 0 where it computes on the CPU, 1 where it names one.

    Otherwise those that nvidia-smi lists and CUDA_VISIBLE_DEVICES lets through. device: the study's key.
    """
    if device not in ("auto", "cuda"):
        return int(device.startswith("cuda:"))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    there = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0," * there).split(",")
    # CUDA ignores what follows an empty or negative entry
    named = takewhile(lambda name: name and not name.startswith("-"), map(str.strip, visible))
    return min(there, len(list(named)))


def use_plain_characters() -> None:
    """Replace characters that the terminal (or the file) does not have: LANG=C, for instance."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return "".join(PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end

    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


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
