"""Hold out validation images, and draw a part of the training images, both stratified by class."""

from __future__ import annotations

import torch
from torch import Tensor

from ztw.errors import ZtwError


def held_out_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the training images into training and validation parts, stratified by class.

    Args:
        labels: int64 (N,).
        fraction: share of the images for validation, in (0, 1); see `held_out_counts`.

    Returns:
        (training, validation) indices, int64.

    Raises:
        ZtwError: if a part would be empty.
    """
    if not 0 < fraction < 1:
        raise ZtwError(f"validation fraction {fraction!r}: must be > 0 and < 1")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    classes, sizes = labels.unique(return_counts=True)
    for label, count in zip(classes, held_out_counts(sizes, fraction).tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out[members[:count]] = True
    if held_out.all() or not held_out.any():
        raise ZtwError(f"validation fraction {fraction!r} of {len(labels)} images leaves a split empty")
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def drawn_images(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw images, stratified by class: the first images of each class after a shuffle.

    Each class has the same share of its images, and at least one. A class's larger draw includes its smaller one.

    Args:
        labels: int64 (N,).
        count: number of images to draw.

    Returns:
        Increasing indices, int64 (count,).

    Raises:
        ZtwError: if there are fewer images, or more classes, than `count`.
    """
    classes, sizes = labels.unique(return_counts=True)
    if not len(classes) <= count <= len(labels):
        raise ZtwError(
            f"data.training_images: {count}: must be {len(classes)} to {len(labels)}, the numbers of classes and of"
            " training images"
        )
    counts = _apportioned(sizes.double(), torch.ones_like(sizes), sizes, count)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label, of_class in zip(classes, counts.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        drawn.append(members[torch.randperm(len(members), generator=generator)[:of_class]])
    return torch.cat(drawn).sort().values


def held_out_counts(sizes: Tensor, fraction: float) -> Tensor:
    """Return the number of validation images of each class, int64 (C,), in total round(fraction * N).

    A class of two or more images keeps at least one image in each part. A class of one image has no validation
    image. These rules may lower the total. If the total is too small for one image of each class, the largest classes
    get one image each. Classes that are all of one size get equal numbers, which may change the total by up to half
    an image per class.

    Args:
        sizes: int64 (C,), images of each class.
        fraction: share of the images for validation.
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
    """Divide `total` in proportion to sizes (C,), within the bounds, by the largest-remainder method."""
    low, high = 0.0, 1.0  # bisection: bounds of the share whose parts add up to the total
    for _ in range(60):
        share = (low + high) / 2
        parts = (share * sizes).clamp(fewest, most)
        low, high = (share, high) if float(parts.sum()) < total else (low, share)
    counts = (parts + 1e-6).long()
    rest = total - int(counts.sum())
    counts[(parts - counts).argsort(descending=True, stable=True)[:rest]] += 1
    return counts
