"""Pooling a block's feature map to a few pixels a side, for the heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pooling_matrix(size: int, target: int, device: torch.device | str = "cpu") -> Tensor:
    """(target, size): adaptive average pooling of one axis as a matrix, with torch's window borders."""
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
    """The windows of adaptive pooling where they tile the map (N, C, H, W): plain pooling is faster then."""
    height, width = x.shape[-2:]
    return None if height % target or width % target else (height // target, width // target)


class _AveragePool(torch.autograd.Function):
    """Adaptive average pooling whose backward pass is two small matrix products.

    PyTorch's own backward takes four times as long on CPUs in channels_last memory and was more
    than a third of a head's training step. On GPUs that of windows which do not tile the map is not deterministic.
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
    """alpha * max + (1 - alpha) * average pooling to (target, target), alpha learned (Kaya et al. 2019)."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, target, target)."""
        if not torch.is_grad_enabled() and x.shape[-2:] == (self.target, self.target):
            return x  # windows of one pixel: maximum and average are the pixel
        ours = torch.is_grad_enabled() and (x.device.type == "cpu" or _window(x, self.target) is None)
        pool = _AveragePool.apply if ours else _average_pool
        return torch.lerp(pool(x, self.target), _max_pool(x, self.target), self.alpha.to(x.dtype))


# name -> module that pools a map (N, C, H, W) to (N, C, side, side), built with the side
POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "mixed": MixedPool,
    "avg": nn.AdaptiveAvgPool2d,
    "max": nn.AdaptiveMaxPool2d,
}
