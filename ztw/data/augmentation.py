"""Normalise and augment batches of images: flips, crops, colour jitter."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = range(3)
ORDERS = tuple(permutations((BRIGHTNESS, CONTRAST, SATURATION)))  # the first is the order "fixed"


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalise uint8 images (N, C, H, W) per channel, (x / 255 - mean) / std, to float32 in channels_last."""
    scale, shift = (
        torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).mul(255) for values in (std, mean)
    )
    scale = scale.reciprocal().to(images.device, non_blocking=True)
    shift = shift.to(images.device, non_blocking=True)
    return (images.float() - shift).mul_(scale).contiguous(memory_format=torch.channels_last)


def augment(
    images: Tensor,
    flip: bool,
    padding: int,
    generator: torch.Generator,
    colour_jitter: float = 0.0,
    jitter_order: str = "fixed",
) -> Tensor:
    """Flip images with probability 1/2, crop them at random offsets after zero padding, jitter their colours.

    Args:
        images: uint8 (N, C, H, W), on any device.
        padding: zero padding on each side, in pixels.
        generator: a CPU generator, so that the augmentation is the same on every device.
        colour_jitter, jitter_order: strength and order, see `jitter_colours`.

    Returns:
        uint8 (N, C, H, W); after colour jitter float32 in [0, 255].
    """
    count, _, height, width = images.shape
    if flip:
        flipped = torch.rand(count, generator=generator, dtype=torch.float32).lt(0.5)
        flipped = flipped.to(images.device, non_blocking=True)
        images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    if padding:
        offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
        offsets = offsets.to(images.device, non_blocking=True)
        rows = offsets[0] + torch.arange(height, device=images.device)  # (N, H)
        columns = offsets[1] + torch.arange(width, device=images.device)  # (N, W)
        padded = torch.nn.functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
        sample = torch.arange(count, device=images.device).view(-1, 1, 1)
        images = padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return jitter_colours(images, colour_jitter, jitter_order, generator) if colour_jitter else images


def jitter_colours(images: Tensor, strength: float, order: str, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation of each image by random factors.

    Args:
        images: uint8 or float (N, C, H, W) in [0, 255], on any device.
        strength: see `jitter_factors`.
        order: "fixed" = brightness, contrast, saturation; "random" = a random order for each image, as in
            torchvision's ColorJitter.
        generator: a CPU generator.

    Returns:
        float32 (N, C, H, W) in [0, 255].
    """
    factors = jitter_factors(len(images), strength, generator).to(images.device)
    if order == "fixed":
        return adjust_colours(images, factors)
    drawn = torch.randint(len(ORDERS), (len(images),), generator=generator).to(images.device)
    out = torch.empty_like(images, dtype=torch.float32, memory_format=torch.contiguous_format)
    for number, one in enumerate(ORDERS):
        mine = (drawn == number).nonzero().flatten()
        out[mine] = adjust_colours(images[mine], factors[:, mine], one)
    return out


def jitter_factors(count: int, strength: float, generator: torch.Generator) -> Tensor:
    """Draw factors of brightness, contrast and saturation (3, N), uniform in [1 - strength, 1 + strength]."""
    factors = torch.empty(3, count, dtype=torch.float32)
    return factors.uniform_(1 - strength, 1 + strength, generator=generator)


def adjust_colours(images: Tensor, factors: Tensor, order: Sequence[int] = ORDERS[0]) -> Tensor:
    """Adjust brightness, contrast and saturation by torchvision's formulas, without rounding in between.

    Args:
        images: uint8 or float (N, C, H, W) in [0, 255].
        factors: (3, N), the factors of brightness, contrast and saturation; 1 changes nothing.
        order: a permutation of BRIGHTNESS, CONTRAST and SATURATION.

    Returns:
        float32 (N, C, H, W) in [0, 255].
    """
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    for which in order:
        factor = factors[which].view(-1, 1, 1, 1)
        if which == BRIGHTNESS:
            images.mul_(factor).clamp_(0, 255)
            continue
        grey = _grey(images).mean((1, 2, 3), keepdim=True) if which == CONTRAST else _grey(images)
        towards = grey * (1 - factor)
        images.mul_(factor).add_(towards).clamp_(0, 255)
    return images


def _grey(images: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W) of RGB images (ITU-R 601); other images unchanged."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
