"""Tensors in safetensors files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from ztw.errors import ZtwError
from ztw.files import check_seal, sealed


def write_tensors(
    path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, sealed; raises ZtwError when it cannot be written (no space, ...)."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with sealed(path) as scratch:
        scratch.touch()
        mode = scratch.stat().st_mode  # as any other file's; safetensors lets nobody else read its own
        try:
            save_file(on_cpu, scratch, metadata)
            scratch.chmod(mode)
        except safetensors.SafetensorError as error:
            raise ZtwError(f"{path}: cannot be written ({error})") from error


def read_tensors(path: Path | str, hint: str = "delete it and run again") -> dict[str, Tensor]:
    """Read a safetensors file to the CPU; raises ZtwError when it is missing, altered or no such file."""
    check_seal(path, hint)
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ZtwError(f"{path}: missing, truncated or not a safetensors file ({error}); {hint}") from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """The texts that were written beside a file's tensors."""
    with safetensors.safe_open(path, "pt") as stream:
        return stream.metadata() or {}
