"""Pooling of a block's feature map for the heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pooling_matrix(size: int, target: int, device: torch.device | str = "cpu") -> Tensor:
    """Return adaptive average pooling of one axis as a matrix (target, size)."""
    matrix = torch.zeros(target, size, device=device)
    for row in range(target):
        start, end = row * size // target, -(-(row + 1) * size // target)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


def _average_pool(x: Tensor, target: int) -> Tensor:
    return F.avg_pool2d(x, window) if (window := _window(x, target)) else F.adaptive_avg_pool2d(x, target)


def _max_pool(x: Tensor, target: int) -> Tensor:
    return F.max_pool2d(x, window) if (window := _window(x, target)) else F.adaptive_max_pool2d(x, target)


def _window(x: Tensor, target: int) -> tuple[int, int] | None:
    """Return the window of adaptive pooling if all windows of a map (N, C, H, W) are equal, else None.

    Pooling with a fixed window is faster.
    """
    height, width = x.shape[-2:]
    return None if height % target or width % target else (height // target, width // target)


class _AveragePool(torch.autograd.Function):
    """Adaptive average pooling with a backward pass of two small matrix products.

    PyTorch's backward pass takes four times as long on CPUs, in channels_last memory. On GPUs, it is not deterministic
    for unequal windows.
    """

    @staticmethod
    def forward(ctx, x: Tensor, target: int) -> Tensor:
        ctx.shape, ctx.target = x.shape, target
        return _average_pool(x, target)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        batch, channels, height, width = ctx.shape
        over_rows = pooling_matrix(height, ctx.target, grad.device).to(grad)  # (target, H)
        over_columns = pooling_matrix(width, ctx.target, grad.device).to(grad)  # (target, W)
        nhwc = grad.permute(0, 2, 3, 1)
        wide = (over_columns.T @ nhwc).reshape(batch, ctx.target, width * channels)
        full = (over_rows.T @ wide).view(batch, height, width, channels)
        return full.permute(0, 3, 1, 2), None


class MixedPool(nn.Module):
    """Pooling to (target, target) by alpha * max + (1 - alpha) * average, alpha learned (Kaya et al. 2019)."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, C, target, target) from (N, C, H, W)."""
        if not torch.is_grad_enabled() and x.shape[-2:] == (self.target, self.target):
            return x  # windows of one pixel
        ours = torch.is_grad_enabled() and (x.device.type == "cpu" or _window(x, self.target) is None)
        pool = _AveragePool.apply if ours else _average_pool
        return torch.lerp(pool(x, self.target), _max_pool(x, self.target), self.alpha.to(x.dtype))


# name -> module class; module(side) pools (N, C, H, W) to (N, C, side, side)
POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "mixed": MixedPool,
    "avg": nn.AdaptiveAvgPool2d,
    "max": nn.AdaptiveMaxPool2d,
}
