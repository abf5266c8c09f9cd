"""Heads of internal classifiers: modules from the features of a block to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ztw.errors import unknown
from ztw.models.backbone import Fp32Linear
from ztw.models.initialisation import INITS
from ztw.models.pooling import POOLINGS


@dataclass(frozen=True)
class HeadOptions:
    """Options of a network's heads. Every kind of head receives all of them.

    Args:
        pooling: a name in POOLINGS.
        width: channels of a head's convolution, as a share of the block's. 0.25 in the released recipe for ImageNet.
        layer_norm: whether a cascade normalises the previous exit's logits. True in the released recipe for ImageNet.
        init: initial weights, "torch" (PyTorch's) or "released" (see `ztw.models.initialisation`).

    Raises:
        ZtwError: for an unknown pooling or init.
    """

    pooling: str = "mixed"
    width: float = 1.0
    layer_norm: bool = False
    init: str = "torch"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS)
        if self.init not in INITS:
            raise unknown("init", self.init, INITS)

    @classmethod
    def of(cls, given: dict[str, Any]) -> HeadOptions:
        """Create the options from a mapping; raise ZtwError for an unknown name."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("head option", name, known)
        return cls(**given)


class Head(nn.Module):
    """An internal classifier: a body from a block's output to a vector, and one Linear.

    Args:
        body: module from the block's output to (N, features).
        features, num_classes: sizes of the Linear.
        previous: in a cascade, the number of the previous exit's logits, which the Linear also receives; else 0.
        layer_norm: whether to normalise these logits.
    """

    def __init__(
        self, body: nn.Module, features: int, num_classes: int, previous: int = 0, layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.body = body
        self.norm = nn.LayerNorm(previous) if layer_norm and previous else nn.Identity()
        self.linear = Fp32Linear(features + previous, num_classes)

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:
        """Compute logits float32 (N, classes) from features (N, ...) and the previous exit's logits, or None."""
        flat = self.body(features).float()
        return self.linear(flat if previous is None else torch.cat([flat, self.norm(previous)], dim=1))


class MeanToken(nn.Module):
    """The mean of a transformer block's tokens, normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute (N, D) from (N, S, D)."""
        return self.norm(tokens.mean(1))


def _vector_head(
    feature_shape: tuple[int, ...], num_classes: int, previous: int, options: HeadOptions
) -> Head:
    """Return a head without convolution and pooling, for a vector (D,) or for the mean of tokens (S, D)."""
    features = feature_shape[-1]
    body = nn.Identity() if len(feature_shape) == 1 else MeanToken(features)
    return Head(body, features, num_classes, previous, options.layer_norm)


class WithoutLast(nn.Module):
    """Removes the last row and column of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, C, H - 1, W - 1) from (N, C, H, W)."""
        return x[..., :-1, :-1]


def stride_and_padding(image_size: int, side: int) -> tuple[int, int]:
    """Return stride and padding of a head's 3x3 convolution in the released code.

    Args:
        image_size: side of the images in pixels: below 64 = CIFAR's values, below 224 = Tiny ImageNet's, else
            ImageNet's.
        side: side of the block's output.
    """
    if image_size < 64:
        return 1, 1
    if image_size < 224:
        return 2, 2 if side > 8 else 1
    return 2 if side > 8 else 1, 1


def conv_head(
    feature_shape: tuple[int, ...], num_classes: int, previous: int, image_size: int, options: HeadOptions
) -> Head:
    """Build the released recipe's head: 3x3 convolution, ReLU, pooling to 4x4, Linear (ZTW 2021).

    Args:
        feature_shape: (C, H, W) of the block's output. (D,) and (S, D) get a head without a convolution.
        num_classes, previous: see `Head`.
        image_size: see `stride_and_padding`.
        options: see `HeadOptions`.
    """
    if len(feature_shape) < 3:
        return _vector_head(feature_shape, num_classes, previous, options)
    channels, *sides = feature_shape
    stride, padding = stride_and_padding(image_size, max(sides))
    hidden = max(1, round(options.width * channels))
    convolved = [(side + 2 * padding - 3) // stride + 1 for side in sides]
    pooled = min(4, *convolved)
    layers = [nn.Conv2d(channels, hidden, 3, stride, padding), nn.ReLU(inplace=True)]
    if padding == 2 and options.pooling == "mixed" and {side % 4 for side in convolved} == {1}:
        # sides 33, 17 and 9 (Tiny ImageNet): the released mixed pool has 4 equal windows and ignores the last pixels
        layers.append(WithoutLast())
    layers += [POOLINGS[options.pooling](pooled), nn.Flatten()]
    return Head(nn.Sequential(*layers), hidden * pooled**2, num_classes, previous, options.layer_norm)


def pool_head(
    feature_shape: tuple[int, ...], num_classes: int, previous: int, image_size: int, options: HeadOptions
) -> Head:
    """Build SDN's light head: pooling to 4x4, Linear (Kaya et al. 2019).

    Arguments as in `conv_head`. It ignores image_size and options.width.
    """
    if len(feature_shape) < 3:
        return _vector_head(feature_shape, num_classes, previous, options)
    channels, height, breadth = feature_shape
    side = min(4, height, breadth)
    body = nn.Sequential(POOLINGS[options.pooling](side), nn.Flatten())
    return Head(body, channels * side * side, num_classes, previous, options.layer_norm)


# (feature shape without the batch axis, num_classes, number of previous logits, side of the images, options) -> head
HeadBuilder = Callable[[tuple[int, ...], int, int, int, HeadOptions], nn.Module]
HEADS: dict[str, HeadBuilder] = {"conv": conv_head, "pool": pool_head}
