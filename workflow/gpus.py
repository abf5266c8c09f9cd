"""How many GPUs of this machine a study may use, counted without importing torch."""

from __future__ import annotations

import os
import subprocess


def count_gpus(device: str) -> int:
    """GPUs for the jobs of a study whose key `device` is this: 0 where it computes on the CPU.

    Those nvidia-smi lists, or as many of them as CUDA_VISIBLE_DEVICES lets through; 1 where the study names one.
    """
    if device not in ("auto", "cuda"):
        return int(device.startswith("cuda:"))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    there = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return there if visible is None else min(there, _let_through(visible))


def _let_through(visible: str) -> int:
    """How many CUDA_VISIBLE_DEVICES names: what follows an empty or negative entry does not count."""
    count = 0
    for name in visible.split(","):
        if not name.strip() or name.strip().startswith("-"):
            break
        count += 1
    return count
