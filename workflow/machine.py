"""Find what the machine gives to a run: cores, GPUs, the terminal's characters, a user name and a home folder."""

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
    """Count the cores that this process may use: by its affinity and by the quotas of its control groups.

    `docker run --cpus=2` sets a quota of CPU time, but the process sees all cores. root: the root of the file system.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas of the control groups (versions 1 and 2) of this process, in cores."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        mounts = ("cpu", controllers) if "cpu" in controllers.split(",") else ("", "unified")
        # also all parents: inside a container, the folder of the group itself may be missing
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
    """Count the GPUs for a study's jobs, without an import of torch.

    0 for the CPU, 1 for a study that names a GPU, else the GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES allows.
    device: the study's key `device`.
    """
    if device not in ("auto", "cuda"):
        return int(device.startswith("cuda:"))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    there = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0," * there).split(",")
    # CUDA ignores all entries after an empty or negative one
    named = takewhile(lambda name: name and not name.startswith("-"), map(str.strip, visible))
    return min(there, len(list(named)))


def use_plain_characters() -> None:
    """Replace characters that the encoding of the output lacks, for example with LANG=C."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return "".join(PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end

    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def ensure_user(configured_root: str | None) -> None:
    """Set a user name and a home folder if the user has no entry in passwd: some packages need both.

    Raises ZtwError if the home folder cannot be used and no data root is given. configured_root: the study's data.root.
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
