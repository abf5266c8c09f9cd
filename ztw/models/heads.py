"""Heads of internal classifiers: features of a block (and the previous exit's logits) to logits."""

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
    """What may be chosen about the heads of a network, of whatever kind they are.

    pooling: a name of POOLINGS; width: channels of a head's convolution as a share of the block's;
    layer_norm: whether the previous exit's logits are normalised first in a cascade. The released recipe for
    ImageNet has width 0.25 and layer_norm. init: the weights they start with, "torch" (PyTorch's) or
    "released" (`ztw.models.initialisation`). Raises ZtwError for an unknown pooling or init.
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
        """From options by name; raises ZtwError for a name that is not one of the fields."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("head option", name, known)
        return cls(**given)


class Head(nn.Module):
    """An internal classifier: a body that turns a block's output into a vector, and one Linear.

    body: features -> (N, features); previous: number of logits of the previous exit that the Linear
    also sees (0 for the first head and for independent ones), normalised first with `layer_norm`
    (the released recipe for ImageNet).
    """

    def __init__(
        self, body: nn.Module, features: int, num_classes: int, previous: int = 0, layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.body = body
        self.norm = nn.LayerNorm(previous) if layer_norm and previous else nn.Identity()
        self.linear = Fp32Linear(features + previous, num_classes)

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:
        """features (N, ...) of a block, previous (N, classes) or None -> logits (N, classes) float32."""
        flat = self.body(features).float()
        return self.linear(flat if previous is None else torch.cat([flat, self.norm(previous)], dim=1))


class MeanToken(nn.Module):
    """Mean over the tokens of a transformer's block, normalised: (N, S, D) -> (N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, S, D) -> (N, D)."""
        return self.norm(tokens.mean(1))


def _vector_head(
    feature_shape: tuple[int, ...], num_classes: int, previous: int, options: HeadOptions
) -> Head:
    """On what is no feature map: one Linear, on a vector (D,) as it is, on tokens (S, D) after their mean."""
    features = feature_shape[-1]
    body = nn.Identity() if len(feature_shape) == 1 else MeanToken(features)
    return Head(body, features, num_classes, previous, options.layer_norm)


class WithoutLast(nn.Module):
    """A map without its last row and column."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H - 1, W - 1)."""
        return x[..., :-1, :-1]


def stride_and_padding(image_size: int, side: int) -> tuple[int, int]:
    """Of a head's 3x3 convolution, as released for CIFAR, Tiny ImageNet and ImageNet.

    image_size: side of the network's input, below 64 pixels as CIFAR's, below 224 as Tiny ImageNet's, else as
    ImageNet's; side: of the block's output.
    """
    if image_size < 64:
        return 1, 1
    if image_size < 224:
        return 2, 2 if side > 8 else 1
    return 2 if side > 8 else 1, 1


def conv_head(
    feature_shape: tuple[int, ...], num_classes: int, previous: int, image_size: int, options: HeadOptions
) -> Head:
    """The released recipe's head: 3x3 convolution, ReLU, pool to 4x4, Linear (ZTW 2021).

    feature_shape: (C, H, W) of the block's output, or (D,) and (S, D), which have no convolution; previous:
    see `Head`; image_size: see `stride_and_padding`.
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
        # Tiny ImageNet's 33, 17 and 9: the released mixed pool's 4 equal windows leave the last pixels out
        layers.append(WithoutLast())
    layers += [POOLINGS[options.pooling](pooled), nn.Flatten()]
    return Head(nn.Sequential(*layers), hidden * pooled**2, num_classes, previous, options.layer_norm)


def pool_head(
    feature_shape: tuple[int, ...], num_classes: int, previous: int, image_size: int, options: HeadOptions
) -> Head:
    """SDN's light head: pool to 4x4, Linear (Kaya et al. 2019); image_size and width change nothing."""
    if len(feature_shape) < 3:
        return _vector_head(feature_shape, num_classes, previous, options)
    channels, height, breadth = feature_shape
    side = min(4, height, breadth)
    body = nn.Sequential(POOLINGS[options.pooling](side), nn.Flatten())
    return Head(body, channels * side * side, num_classes, previous, options.layer_norm)


# (feature shape without the batch axis, num_classes, previous logits, side of the images, options) -> head
HeadBuilder = Callable[[tuple[int, ...], int, int, int, HeadOptions], nn.Module]
HEADS: dict[str, HeadBuilder] = {"conv": conv_head, "pool": pool_head}
