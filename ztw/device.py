"""Where and in which precision to compute, with which memory, and so that it can be repeated."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import socket
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch

from ztw.errors import ZtwError

PRECISIONS = ("auto", "bf16", "fp32")


def check_default_dtype() -> None:
    """Raise ZtwError where PyTorch makes other tensors than float32, in which all networks here compute."""
    if (found := torch.get_default_dtype()) != torch.float32:
        raise ZtwError(
            f"PyTorch's default dtype is {found}, must be torch.float32 while networks are made, trained, counted"
            " and run: call torch.set_default_dtype(torch.float32)"
        )


def pick_device(device: str = "auto") -> torch.device:
    """The device to compute on: "auto" = a GPU when there is one; raises ZtwError when it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ZtwError(
            f"device {device!r}: not available here ({str(error).splitlines()[0]}); use auto, cpu or cuda"
        ) from error
    return chosen


def own_gpu(device: str) -> str:
    """Of several GPUs one for this process, as long as it lives: "auto" and "cuda" become "cuda:<n>".

    Jobs side by side on one machine take different ones, first come, first served, by a lock on a file per
    GPU in the system's folder for temporary files; where all are taken, or there are no locks, they share.
    A device that names its GPU, and a machine with one GPU or none, is left as it is. A scheduler that gives
    a job one GPU shows it that one alone, so that there is nothing to choose.
    """
    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return device
    return f"cuda:{_claimed()[0]}"


@cache
def _claimed() -> tuple[int, IO[str] | None]:
    """The index of the GPU that is this process's among those it sees, and the file whose lock says so."""
    count = torch.cuda.device_count()
    listed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = listed if len(listed) == count else [str(index) for index in range(count)]
    for index, name in enumerate(names):
        if (file := _locked(name)) is not None:
            return index, file
    return os.getpid() % count, None


def _locked(gpu: str) -> IO[str] | None:
    """The open, locked file of a GPU, None where another process holds it or it cannot be locked."""
    # of this machine and user: a folder of the study may lie on several machines
    folder = Path(tempfile.gettempdir(), f"ztw-gpus-{os.getuid() if hasattr(os, 'getuid') else 0}")
    try:
        import fcntl

        folder.mkdir(mode=0o700, exist_ok=True)
        # somebody else's, put there on purpose
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return None
        file = (folder / "".join(char if char.isalnum() else "-" for char in gpu)).open("a")
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def bf16_pays(device: torch.device) -> bool:
    """Whether the device computes faster in bfloat16 than in float32; emulated, it is slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        known = torch.cpu.get_capabilities()
        # An Intel Xeon with AVX512-BF16 but no AMX took half as long again for a ResNet-56 in bfloat16
        vector = known.get("avx512_bf16") and "AMD" in str(known.get("cpu_name"))
        return bool(vector or known.get("amx_bf16") or known.get("bf16"))
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that one of PRECISIONS means on a device: "auto" = bf16 where that is faster, else fp32.

    Raises ZtwError for another name.
    """
    if precision not in PRECISIONS:
        raise ZtwError(f"precision {precision!r}: must be one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        return "bf16" if bf16_pays(device) else "fp32"
    return precision


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for its next use; returns whether it takes the request (glibc does).

    Activations come and go with every layer. What is given back to the system in between comes back page by
    page, cleared: 27,000 page faults in a training step of MobileNet on a CPU, 7 to 10 % of its time. For
    a process that computes on its main thread: it holds what it once had, or a little more, until it ends.
    No effect beside another allocator.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
    return bool(mallopt(trim_threshold, -1) and mallopt(mmap_max, 0))


def make_reproducible(threads: int) -> None:
    """Compute with so many threads and deterministic algorithms only, where torch has them.

    Both decide in which order sums are taken: a job that is run again then gives the same numbers.
    """
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # torch would fill all memory that it hands out, for programs that read what nobody wrote: 7 % of a training
    # step on a CPU, 10 % of an inference
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the CPU's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine())
    return str(device)


@dataclass(frozen=True)
class Compute:
    """Where and in which precision a network computes.

    Args:
        device: of the network and its images.
        precision: resolved, "fp32" or "bf16" (autocast; weights stay float32).
    """

    device: torch.device
    precision: str = "fp32"

    @classmethod
    def on(cls, device: torch.device, precision: str = "auto") -> Compute:
        """Return how to compute on a device; precision: one of PRECISIONS.

        Raises:
            ZtwError: for another precision.
        """
        return cls(device, resolve_precision(precision, device))

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which a network computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def describe(self) -> dict[str, Any]:
        """Return what a result's metadata says of the machine: device, precision, threads and host."""
        return {
            "device": device_name(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "host": socket.gethostname(),
        }


ON_CPU = Compute(torch.device("cpu"))
