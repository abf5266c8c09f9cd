"""Convert and check tensors, and write and read safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ztw.errors import ZtwError, reason
from ztw.files import check_seal, sealed


def as_tensor(given: Any, name: str) -> Tensor:
    """Convert arrays and nested lists of numbers to tensors. A NumPy array shares its memory where possible.

    Args:
        given: a tensor, a NumPy array, or a number or nested lists of numbers.
        name: name of the argument, for error messages.

    Raises:
        ZtwError: for any other value.
    """
    if isinstance(given, Tensor):
        return given
    try:
        array = np.ascontiguousarray(given) if np.ndim(given) else np.asarray(given)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        if "inhomogeneous" in str(error):
            raise ZtwError(f"{name}: lists of different lengths, must be of one length; pad them") from error
        kind = f"an array of {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
        raise ZtwError(f"{name}: {kind}, must be a tensor or an array of numbers") from error


def write_tensors(
    path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors to a sealed safetensors file; raise ZtwError if that fails, e.g. because the disk is full."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with sealed(path) as scratch:
        scratch.touch()
        mode = scratch.stat().st_mode  # safetensors would let only the owner read the file
        try:
            save_file(on_cpu, scratch, metadata)
            scratch.chmod(mode)
        except safetensors.SafetensorError as error:
            raise ZtwError(f"{path}: cannot be written ({reason(error, path)})") from error


def read_tensors(path: Path | str, hint: str = "delete it and run again") -> dict[str, Tensor]:
    """Read a safetensors file to the CPU; raise ZtwError with `hint` if it is missing, altered or of another format."""
    check_seal(path, hint)
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ZtwError(
            f"{path}: missing, truncated or not a safetensors file ({reason(error, path)}); {hint}"
        ) from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """Read the metadata of a safetensors file."""
    with safetensors.safe_open(path, "pt") as stream:
        return stream.metadata() or {}
