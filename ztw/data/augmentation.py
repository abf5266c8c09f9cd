"""Batches of images on their way into a network: normalised, flipped, cropped, their colours jittered."""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (N, C, H, W) to float32 in channels_last memory, (x / 255 - mean) / std per channel."""
    shape = (1, -1, 1, 1)
    scale = torch.tensor(std, device=images.device).view(shape).mul(255).reciprocal()
    shift = torch.tensor(mean, device=images.device).view(shape).mul(255)
    return (images.float() - shift).mul_(scale).contiguous(memory_format=torch.channels_last)


def augment(
    images: Tensor, flip: bool, padding: int, generator: torch.Generator, colour_jitter: float = 0.0
) -> Tensor:
    """Flip each image with probability 1/2, crop it at a random offset after zero padding, jitter its colours.

    images: uint8 (N, C, H, W), any device; generator: on the CPU, so that every device sees the
    same augmentation. Returns uint8, or float32 in [0, 255] after colour jitter.
    """
    count, _, height, width = images.shape
    if flip:
        flipped = torch.rand(count, generator=generator).lt(0.5).to(images.device)
        images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)
    if padding:
        offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator).to(images.device)
        rows = offsets[0] + torch.arange(height, device=images.device)  # (N, H)
        columns = offsets[1] + torch.arange(width, device=images.device)  # (N, W)
        padded = torch.nn.functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
        sample = torch.arange(count, device=images.device).view(-1, 1, 1)
        images = padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if colour_jitter:
        factors = jitter_factors(count, colour_jitter, generator)
        images = adjust_colours(images, *factors.to(images.device))
    return images


def jitter_factors(count: int, strength: float, generator: torch.Generator) -> Tensor:
    """(3, count): factors of brightness, contrast and saturation, uniform in [1 - strength, 1 + strength]."""
    return torch.empty(3, count).uniform_(1 - strength, 1 + strength, generator=generator)


def adjust_colours(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Brightness, then contrast, then saturation, by torchvision's formulas, without its rounding between.

    images: uint8 or float (N, C, H, W) in [0, 255]; the factors (N,) per image, 1 leaves it as it is.
    Returns float32 in [0, 255].
    """
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in (brightness, contrast, saturation))
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    images.mul_(brightness).clamp_(0, 255)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 255)
    grey = _grey(images) * (1 - saturation)
    return images.mul_(saturation).add_(grey).clamp_(0, 255)


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W): luma of RGB images (ITU-R 601); others as they are."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
