"""The validation part that is held out of the training images, stratified by class."""

from __future__ import annotations

import torch
from torch import Tensor

from ztw.errors import ZtwError


def held_out_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split training samples into (train, validation) indices, stratified by class and seeded.

    labels: int64 (N,); fraction: share of the samples that is held out, in (0, 1); how many of each class,
    `held_out_counts` says.
    Raises ZtwError when the fraction leaves either part empty.
    """
    if not 0 < fraction < 1:
        raise ZtwError(f"validation fraction {fraction!r}: must lie strictly between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    classes, sizes = labels.unique(return_counts=True)
    for label, count in zip(classes, held_out_counts(sizes, fraction).tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out[members[:count]] = True
    if held_out.all() or not held_out.any():
        raise ZtwError(f"validation fraction {fraction!r} of {len(labels)} images leaves a part empty")
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def held_out_counts(sizes: Tensor, fraction: float) -> Tensor:
    """Say how many samples of each class are held out: int64 (C,), round(fraction * N) in all.

    sizes: int64 (C,), samples of each class. Of a class of two samples or more at least one is held out and at
    least one is not, of a class of one none: the total is smaller where that asks for it. Where the total is
    smaller than the number of classes, the largest get one each. Classes of one size get the same number each,
    which can change the total by half a sample a class.
    """
    fewest, most = (sizes > 1).long(), (sizes - 1).clamp(min=0)
    total = min(round(fraction * int(sizes.sum())), int(most.sum()))
    rounded = (fraction * sizes.double()).round().long()  # half to even
    alike = bool((sizes == sizes[0]).all()) or int(rounded.sum()) == total
    if alike and bool((rounded >= fewest).all() and (rounded <= most).all()):
        return rounded
    if total <= int(fewest.sum()):
        counts = torch.zeros_like(sizes)
        counts[sizes.argsort(descending=True, stable=True)[:total]] = 1
        return counts
    return _apportioned(sizes.double(), fewest, most, total)


def _apportioned(sizes: Tensor, fewest: Tensor, most: Tensor, total: int) -> Tensor:
    """Share out `total` in proportion to sizes (C,), within bounds, by the largest remainder: int64 (C,)."""
    low, high = 0.0, 1.0  # of the share at which the bounded parts add up to the total
    for _ in range(60):
        share = (low + high) / 2
        parts = (share * sizes).clamp(fewest, most)
        low, high = (share, high) if float(parts.sum()) < total else (low, share)
    counts = (parts + 1e-6).long()
    rest = total - int(counts.sum())
    counts[(parts - counts).argsort(descending=True, stable=True)[:rest]] += 1
    return counts
