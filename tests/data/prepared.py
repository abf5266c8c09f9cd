"""Images for several tests of data sets."""

from __future__ import annotations

import torch

from ztw.data.decoded import ImageSet
from ztw.data.splits import load_split


def grey(count: int = 6, size: int = 4) -> torch.Tensor:
    return torch.arange(count * size * size, dtype=torch.uint8).view(count, 1, size, size)


def decoded(record: dict, split: str) -> ImageSet:
    """Return a decoded split, whose pixels can be read."""
    found = load_split(record, split)
    assert isinstance(found, ImageSet)
    return found
