"""Batches of images on their way into a network: normalised, flipped, cropped, their colours jittered."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = range(3)
ORDERS = tuple(permutations((BRIGHTNESS, CONTRAST, SATURATION)))  # the first is the fixed one


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (N, C, H, W) to float32 in channels_last memory, (x / 255 - mean) / std per channel."""
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
    """Flip each image with probability 1/2, crop it at a random offset after zero padding, jitter its colours.

    images: uint8 (N, C, H, W), any device; generator: on the CPU, so that every device sees the
    same augmentation; colour_jitter, jitter_order: see `jitter_colours`.
    Returns uint8, or float32 in [0, 255] after colour jitter.
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
    """Change brightness, contrast and saturation of each image by a random factor (`jitter_factors`).

    images: uint8 or float (N, C, H, W) in [0, 255], any device; order: "fixed", as named here, or "random",
    another one for every image, as torchvision's ColorJitter draws it. Returns float32 in [0, 255].
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
    """(3, count): factors of brightness, contrast and saturation, uniform in [1 - strength, 1 + strength]."""
    factors = torch.empty(3, count, dtype=torch.float32)
    return factors.uniform_(1 - strength, 1 + strength, generator=generator)


def adjust_colours(images: Tensor, factors: Tensor, order: Sequence[int] = ORDERS[0]) -> Tensor:
    """Brightness, contrast and saturation by torchvision's formulas, without its rounding between.

    images: uint8 or float (N, C, H, W) in [0, 255]; factors: (3, N), of each of the three for every image, 1
    leaves it as it is; order: of BRIGHTNESS, CONTRAST, SATURATION. Returns float32 in [0, 255].
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
    """(N, 1, H, W): luma of RGB images (ITU-R 601); others as they are."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
