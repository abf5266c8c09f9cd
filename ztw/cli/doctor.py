"""Look at this machine: what it has, what is missing, and what to do. Nothing is changed."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

from ztw.catalogue.datasets import DATASETS, DatasetMetadata
from ztw.device import device_name, pick_device, resolve_precision
from ztw.errors import ZtwError
from ztw.extras import EXTRAS, missing
from ztw.files import data_root
from ztw.version import __version__

GIB = 2**30
LEAST_DISK, LEAST_MEMORY = 5, 4  # GiB; the quick study needs less


@dataclass(frozen=True)
class Finding:
    """What was found about a topic.

    Args:
        text: what was found.
        todo: what to do; "" = nothing.
        kind: "ok", "note" (something is slower or left out) or "problem" (something will fail).
    """

    topic: str
    text: str
    todo: str = ""
    kind: str = "ok"


def shown(finding: Finding) -> str:
    """Return a finding as one line, or two with what to do."""
    line = f"{finding.kind:8} {finding.topic:10} {finding.text}"
    return f"{line}\n{'':20}-> {finding.todo}" if finding.todo else line


def findings(results: Path) -> list[Finding]:
    """Return all findings. results: the folder of studies."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (_software, _cpu, _gpu, _memory, _data, _packages)
    return [finding for part in parts for finding in part()] + list(_stores(results))


def _software() -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("ztw", f"{__version__}, Python {platform.python_version()} ({sys.executable}), {system}")
    yield Finding("torch", f"{torch.__version__}, torchvision {torchvision.__version__}")


def _cpu() -> Iterator[Finding]:
    known = torch.cpu.get_capabilities()
    units = [
        name for name, key in (("AMX", "amx_bf16"), ("AVX512-BF16", "avx512_bf16")) if known.get(key)
    ] + (["Arm BF16"] if known.get("bf16") else [])
    affinity = getattr(os, "sched_getaffinity", None)
    cores, threads = len(affinity(0)) if affinity else os.cpu_count() or 1, torch.get_num_threads()
    bf16 = f"bfloat16 by {' and '.join(units)}" if units else "no bfloat16 units"
    text = f"{device_name(torch.device('cpu'))}, {cores} cores, {bf16}"
    yield Finding("CPU", text)
    if threads < cores and "OMP_NUM_THREADS" in os.environ:
        yield Finding(
            "threads", f"PyTorch uses {threads} of {cores} cores", "unset OMP_NUM_THREADS to use all", "note"
        )


def _gpu() -> Iterator[Finding]:
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_properties(number) for number in range(count)]
    for number, properties in enumerate(names):
        yield Finding(
            "GPU", f"cuda:{number}: {properties.name}, {properties.total_memory / GIB:.0f} GiB of memory"
        )
    if not count and (driver := _gpus_of_the_driver()):
        todo = "install a torch for CUDA that fits the driver (https://pytorch.org/get-started)"
        yield Finding("GPU", f"the driver has {driver} GPU(s), but torch cannot use them", todo, "problem")
    elif not count:
        yield Finding("GPU", "none: networks compute on the CPU")
    device = pick_device()
    precision = resolve_precision("auto", device)
    why = "faster here than float32" if precision == "bf16" else "bfloat16 is not faster here"
    yield Finding("precision", f"auto computes in {precision} on {device.type} ({why})")


def _gpus_of_the_driver() -> int:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return 0 if hidden else sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _memory() -> Iterator[Finding]:
    total, free = _memory_bytes()
    if total is None:
        return
    text = f"{total / GIB:.1f} GiB" + ("" if free is None else f", {free / GIB:.1f} GiB free")
    low = (total if free is None else free) < LEAST_MEMORY * GIB
    todo = "close other programs; in a study, lower batch_size or --cores" if low else ""
    yield Finding("memory", text, todo, "note" if low else "ok")


def _memory_bytes() -> tuple[int | None, int | None]:
    """Return the total and the free memory in bytes; None = unknown. A container's limit counts."""
    found: dict[str, int] = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found[name] = 1024 * int(value.split()[0])
    except (OSError, ValueError, IndexError):
        return None, None
    total, free = found.get("MemTotal"), found.get("MemAvailable")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return total, free
    return min(total or limit, limit), min(free or limit, limit)


def _data() -> Iterator[Finding]:
    try:
        root = data_root()
    except ZtwError as error:
        yield Finding("data", str(error), "export ZTW_DATA=<a folder>", "problem")
        return
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    if not os.access(place, os.W_OK):
        todo = "export ZTW_DATA=<a folder that you can write to>"
        yield Finding("data", f"{root}: cannot be written", todo, "problem")
    for what, folder in (("disk, data", place), ("disk, here", Path.cwd())):
        free = shutil.disk_usage(folder).free / GIB
        low = free < LEAST_DISK
        todo = "free some space, or set ZTW_DATA to another disk" if low else ""
        yield Finding(what, f"{free:.0f} GiB free in {folder}", todo, "note" if low else "ok")
    there = [name for name, metadata in DATASETS.items() if _is_there(name, metadata, root)]
    yield Finding("data", f"{root} has {', '.join(there) or 'no data set'}")
    absent = [name for name in DATASETS if name not in there]
    if loaded := [name for name in absent if DATASETS[name].url]:
        yield Finding("data", f"not there: {', '.join(loaded)} (a study downloads what it needs)")
    for name in absent:
        if source := DATASETS[name].source:
            todo = f"put its images into {root / name}/train/<class>/ and val/<class>/ (from {source})"
            yield Finding("data", f"not there: {name}", todo)


def _is_there(name: str, metadata: DatasetMetadata, root: Path) -> bool:
    """Return whether a data set's files exist below `root`. Their content is not checked."""
    if any(root.glob(f"decoded/{name}-*/record.json")):
        return True
    if metadata.files:
        return all((root / file).is_file() for file in metadata.files)
    if metadata.archive:
        return (root / metadata.archive).is_dir() or (root / f"{metadata.archive}.zip").is_file()
    if metadata.streamed:
        return (root / name).is_dir()
    return "sklearn" not in missing("workflow")  # digits are part of scikit-learn


def _packages() -> Iterator[Finding]:
    for name, extra in EXTRAS.items():
        absent = missing(name)
        if not absent:
            yield Finding("packages", f"{name}: all there ({extra.purpose})")
            continue
        text = f"{name}: {', '.join(absent)} missing ({extra.purpose})"
        yield Finding("packages", text, f"pip install 'ztw[{name}]'", "note")


def _stores(results: Path) -> Iterator[Finding]:
    databases = sorted(results.glob("*/mlflow.db"))
    for database in databases:
        try:
            with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as store:
                (state,) = store.execute("PRAGMA quick_check(1)").fetchone()
                (runs,) = store.execute("SELECT count(*) FROM runs").fetchone()
        except sqlite3.DatabaseError as error:
            state, runs = str(error), 0
        if state == "ok":
            yield Finding("MLflow", f"{database}: {runs} run{'s' if runs != 1 else ''}")
        else:
            todo = "run make reproduce again: it renames the database and logs all runs into a new one"
            yield Finding("MLflow", f"{database} is broken ({state})", todo, "problem")
    if not databases:
        yield Finding("MLflow", f"no database in {results}/: make reproduce writes one per study")
