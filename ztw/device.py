"""Choose the device, precision and memory settings of a computation, and make it reproducible."""

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
    """Raise ZtwError unless PyTorch's default dtype is float32: all networks here are float32."""
    if (found := torch.get_default_dtype()) != torch.float32:
        raise ZtwError(
            f"PyTorch's default dtype is {found}, must be torch.float32; call torch.set_default_dtype(torch.float32)"
        )


def pick_device(device: str = "auto") -> torch.device:
    """Return the device to compute on.

    Args:
        device: e.g. "cpu", "cuda" or "cuda:1"; "auto" = a GPU if there is one, else the CPU.

    Raises:
        ZtwError: if the device is not available.
    """
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
    """Reserve one of several GPUs for this process until it ends.

    Processes on one machine reserve different GPUs, each with a file lock in the system's temporary folder. If all GPUs
    are reserved, or file locks are not supported, processes share them. Nothing is reserved on a machine with fewer
    than two GPUs.

    Args:
        device: "auto" or "cuda"; any other device is returned unchanged.

    Returns:
        "cuda:<n>", or `device`.
    """
    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return device
    return f"cuda:{_claimed()[0]}"


@cache
def _claimed() -> tuple[int, IO[str] | None]:
    """Return the index of this process's GPU, and the locked file that reserves it (None if the GPU is shared)."""
    count = torch.cuda.device_count()
    listed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = listed if len(listed) == count else [str(index) for index in range(count)]
    for index, name in enumerate(names):
        if (file := _locked(name)) is not None:
            return index, file
    return os.getpid() % count, None


def _locked(gpu: str) -> IO[str] | None:
    """Return the open, locked file of a GPU; None if another process holds the lock or locking fails."""
    # a local folder of this user, because several machines may share the study's folder
    folder = Path(tempfile.gettempdir(), f"ztw-gpus-{os.getuid() if hasattr(os, 'getuid') else 0}")
    try:
        import fcntl

        folder.mkdir(mode=0o700, exist_ok=True)
        # refuse a folder that another user has created
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
    """Return whether the device computes faster in bfloat16 than in float32. Emulation is slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        known = torch.cpu.get_capabilities()
        # an Intel Xeon with AVX512-BF16 but without AMX took 1.5 times as long for a ResNet-56 in bfloat16
        vector = known.get("avx512_bf16") and "AMD" in str(known.get("cpu_name"))
        return bool(vector or known.get("amx_bf16") or known.get("bf16"))
    return False


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "fp32" or "bf16" for one of PRECISIONS: "auto" = "bf16" where the device computes faster in it.

    Raises:
        ZtwError: for another precision.
    """
    if precision not in PRECISIONS:
        raise ZtwError(f"precision {precision!r}: must be one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        return "bf16" if bf16_pays(device) else "fp32"
    return precision


def keep_freed_memory() -> bool:
    """Let the C library (glibc) keep freed memory for reuse, instead of returning it to the system.

    Every layer allocates and frees activations. The system gives memory page by page and fills it with zeros: 27,000
    page faults in a training step of MobileNet on a CPU, 7 to 10 % of its time. Use this function in a process that
    computes on its main thread. The process then holds its peak memory, or slightly more, until it ends.

    Returns:
        Whether the C library accepted the setting; False with another allocator than glibc's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    return bool(mallopt(trim_threshold, -1) and mallopt(mmap_max, 0))


def make_reproducible(threads: int) -> None:
    """Set the number of threads, and use deterministic algorithms where PyTorch has them.

    Both fix the order of sums, so that a repeated job computes the same numbers.
    """
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # deterministic mode fills uninitialised memory by default: 7 % of a training step on a CPU, 10 % of an inference
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or the model of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine())
    return str(device)


@dataclass(frozen=True)
class Compute:
    """The device and precision of a computation.

    Args:
        device: holds the network and its images.
        precision: "fp32", or "bf16" (autocast; weights stay float32).
    """

    device: torch.device
    precision: str = "fp32"

    @classmethod
    def on(cls, device: torch.device, precision: str = "auto") -> Compute:
        """Create the settings for a device and one of PRECISIONS; raise ZtwError for another precision."""
        return cls(device, resolve_precision(precision, device))

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the autocast context of the computation."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def describe(self) -> dict[str, Any]:
        """Return the metadata of a result: device, precision, threads and host."""
        return {
            "device": device_name(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "host": socket.gethostname(),
        }


ON_CPU = Compute(torch.device("cpu"))
