"""Heads of internal classifiers: features of a block (and the previous exit's logits) to logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ztw.errors import unknown
from ztw.models.backbone import Fp32Linear


def pooling_matrix(size: int, target: int) -> Tensor:
    """(target, size): adaptive average pooling of one axis as a matrix, with torch's window borders."""
    matrix = torch.zeros(target, size)
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
    than a third of a head's training step.
    """

    @staticmethod
    def forward(ctx, x: Tensor, target: int) -> Tensor:
        ctx.shape, ctx.target = x.shape, target
        return _average_pool(x, target)

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
        if not torch.is_grad_enabled() and x.shape[-2:] == (self.target, self.target):
            return x  # windows of one pixel: maximum and average are the pixel
        pool = _AveragePool.apply if torch.is_grad_enabled() else _average_pool
        return torch.lerp(pool(x, self.target), _max_pool(x, self.target), self.alpha.to(x.dtype))


class Head(nn.Module):
    """An internal classifier: a body that turns a block's output into a vector, and one Linear.

    body: features -> (N, features); previous: number of logits of the previous exit that the Linear
    also sees (0 for the first head and for independent ones), normalised first with `layer_norm`
    (the released recipe for ImageNet).
    """

    def __init__(
        self, body: nn.Module, features: int, classes: int, previous: int = 0, layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.body = body
        self.norm = nn.LayerNorm(previous) if layer_norm and previous else nn.Identity()
        self.linear = Fp32Linear(features + previous, classes)

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:
        """features (N, ...) of a block, previous (N, classes) or None -> logits (N, classes) float32."""
        flat = self.body(features).float()
        return self.linear(flat if previous is None else torch.cat([flat, self.norm(previous)], dim=1))


def _pool(pooling: str, side: int) -> nn.Module:
    if pooling not in POOLINGS:
        raise unknown("pooling", pooling, POOLINGS)
    return POOLINGS[pooling](side)


class MeanToken(nn.Module):
    """Mean over the tokens of a transformer's block, normalised: (N, S, D) -> (N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, S, D) -> (N, D)."""
        return self.norm(tokens.mean(1))


def _vector_body(feature_shape: tuple[int, ...]) -> tuple[nn.Module, int] | None:
    """The body for what is no feature map: a vector as it is, the mean of tokens; None for a map."""
    if len(feature_shape) == 1:
        return nn.Identity(), feature_shape[0]
    if len(feature_shape) == 2:
        return MeanToken(feature_shape[1]), feature_shape[1]
    return None


def conv_head(
    feature_shape: tuple[int, ...],
    classes: int,
    previous: int = 0,
    image_size: int = 32,
    pooling: str = "mixed",
    width: float = 1.0,
    layer_norm: bool = False,
) -> Head:
    """The released recipe's head: 3x3 convolution, ReLU, pool to 4x4, Linear (ZTW 2021).

    feature_shape: (C, H, W) of the block's output, or (D,) and (S, D), which have no convolution;
    image_size: from 64 to 223 pixels a side the convolution has stride 2 (Tiny ImageNet's recipe);
    width: channels of the convolution as a share of the block's (0.25 in the recipe for ImageNet).
    """
    if (vector := _vector_body(feature_shape)) is not None:
        return Head(*vector, classes, previous, layer_norm)
    channels, height, breadth = feature_shape
    stride = 2 if 64 <= image_size < 224 else 1
    side = min(4, -(-height // stride), -(-breadth // stride))
    hidden = max(1, round(width * channels))
    conv = nn.Conv2d(channels, hidden, 3, stride, padding=1)
    body = nn.Sequential(conv, nn.ReLU(inplace=True), _pool(pooling, side), nn.Flatten())
    return Head(body, hidden * side * side, classes, previous, layer_norm)


def pool_head(
    feature_shape: tuple[int, ...],
    classes: int,
    previous: int = 0,
    image_size: int = 32,
    pooling: str = "mixed",
    width: float = 1.0,
    layer_norm: bool = False,
) -> Head:
    """SDN's light head: pool to 4x4, Linear (Kaya et al. 2019); image_size and width change nothing."""
    if (vector := _vector_body(feature_shape)) is not None:
        return Head(*vector, classes, previous, layer_norm)
    channels, height, breadth = feature_shape
    side = min(4, height, breadth)
    return Head(
        nn.Sequential(_pool(pooling, side), nn.Flatten()), channels * side**2, classes, previous, layer_norm
    )


# side of the pooled map -> module
POOLINGS: dict[str, Callable[[int], nn.Module]] = {
    "mixed": MixedPool,
    "avg": nn.AdaptiveAvgPool2d,
    "max": nn.AdaptiveMaxPool2d,
}
# name -> builder(feature_shape without the batch axis, classes, previous logits, side of the images,
#                 pooling, width, layer_norm)
HEADS: dict[str, Callable[..., Head]] = {"conv": conv_head, "pool": pool_head}
