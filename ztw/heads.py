"""Heads of internal classifiers: features of a block (and the previous exit's logits) to logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ztw.backbone import Fp32Linear


def pooling_matrix(size: int, target: int) -> Tensor:
    """(target, size): adaptive average pooling of one axis as a matrix, with torch's window borders."""
    matrix = torch.zeros(target, size)
    for row in range(target):
        start, end = row * size // target, -(-(row + 1) * size // target)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


class _AveragePool(torch.autograd.Function):
    """Adaptive average pooling whose backward pass is two small matrix products.

    PyTorch's own backward takes four times as long on CPUs in channels_last memory and was more
    than a third of a head's training step.
    """

    @staticmethod
    def forward(ctx, x: Tensor, target: int) -> Tensor:
        ctx.shape, ctx.target = x.shape, target
        return F.adaptive_avg_pool2d(x, target)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        batch, channels, height, width = ctx.shape
        over_rows = pooling_matrix(height, ctx.target).to(grad)  # (target, H)
        over_columns = pooling_matrix(width, ctx.target).to(grad)  # (target, W)
        nhwc = grad.permute(0, 2, 3, 1)
        wide = (over_columns.T @ nhwc).reshape(batch, ctx.target, width * channels)
        full = (over_rows.T @ wide).view(batch, height, width, channels)
        return full.permute(0, 3, 1, 2), None


class MixedPool(nn.Module):
    """alpha * max + (1 - alpha) * average pooling to (target, target), alpha learned (Kaya et al. 2019)."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, target, target)."""
        alpha = self.alpha.to(x.dtype)
        average = _AveragePool.apply(x, self.target)
        return alpha * F.adaptive_max_pool2d(x, self.target) + (1 - alpha) * average


class ConvHead(nn.Module):
    """The released recipe's head: 3x3 convolution, ReLU, mixed pool to 4x4, Linear (ZTW 2021).

    feature_shape: (C, H, W) of the block's output; previous: number of logits of the previous exit
    that the Linear also sees (0 for the first head and for independent ones); stride: of the
    convolution, 2 in the released recipe for 64x64 images.
    """

    def __init__(
        self, feature_shape: tuple[int, ...], classes: int, previous: int = 0, stride: int = 1
    ) -> None:
        super().__init__()
        channels, height, width = feature_shape
        side = min(4, -(-height // stride), -(-width // stride))
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1)
        self.relu = nn.ReLU()
        self.pool = MixedPool(side)
        self.linear = Fp32Linear(channels * side * side + previous, classes)

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:
        """features (N, C, H, W), previous (N, classes) or None -> logits (N, classes) float32."""
        flat = self.pool(self.relu(self.conv(features))).flatten(1).float()
        return self.linear(flat if previous is None else torch.cat([flat, previous], dim=1))


class LinearHead(nn.Module):
    """One Linear: the head on features that are a vector already, as after VGG's first FC layer."""

    def __init__(self, feature_shape: tuple[int, ...], classes: int, previous: int = 0) -> None:
        super().__init__()
        (features,) = feature_shape
        self.linear = Fp32Linear(features + previous, classes)

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:
        """features (N, D), previous (N, classes) or None -> logits (N, classes) float32."""
        flat = features.float()
        return self.linear(flat if previous is None else torch.cat([flat, previous], dim=1))


def conv_head(
    feature_shape: tuple[int, ...], classes: int, previous: int = 0, image_size: int = 32
) -> nn.Module:
    """The released recipe's head for a block: ConvHead, or LinearHead where its output is a vector."""
    if len(feature_shape) == 1:
        return LinearHead(feature_shape, classes, previous)
    return ConvHead(feature_shape, classes, previous, stride=2 if image_size >= 64 else 1)


# name -> builder(feature_shape without the batch axis, classes, previous logits, side of the images)
HEADS: dict[str, Callable[..., nn.Module]] = {"conv": conv_head}
