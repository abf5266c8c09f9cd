"""Write and read which samples a method classifies correctly, eight samples per byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.tensors import read_metadata, read_tensors, write_tensors


def write_correct(path: Path, correct: Mapping[str, Tensor]) -> None:
    """Write which samples are classified correctly; correct: "<protocol>@<budget>" -> uint8 (N,), 1 = correct."""
    packed = {
        name: torch.from_numpy(np.packbits(own.numpy(), bitorder="little")) for name, own in correct.items()
    }
    samples = {name: str(len(own)) for name, own in correct.items()}
    write_tensors(path, packed, samples or None)  # empty metadata cannot be read


def read_correct(path: Path) -> dict[str, Tensor]:
    """Read a file of `write_correct`.

    Raises:
        ZtwError: if the file is missing, altered or of another kind.
    """
    packed, samples = read_tensors(path), read_metadata(path)
    try:
        return {
            name: torch.from_numpy(np.unpackbits(bits.numpy(), count=int(samples[name]), bitorder="little"))
            for name, bits in packed.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ZtwError(
            f"{path}: not a file of correct samples ({error!r}); delete it and run again"
        ) from error
