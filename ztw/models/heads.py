"""Heads of internal classifiers: modules from the features of a block to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ztw.errors import ZtwError, unknown
from ztw.models.backbone import Fp32Linear
from ztw.models.initialisation import INITS
from ztw.models.pooling import POOLINGS

FIRST = "first"  # pooling: the first token


@dataclass(frozen=True)
class HeadOptions:
    """Options of a network's heads. Every kind of head receives all of them.

    Args:
        pooling: of maps, a name in POOLINGS. Of tokens (N, T, D): "first" = the first token; any other = the mean of
            the tokens that the attention mask keeps.
        width: channels of a head's convolution, or hidden units of an MLP, as a share of the block's channels. The
            released recipe for ImageNet has 0.25.
        layer_norm: whether a cascade normalises the previous exit's logits. The released recipe for ImageNet does.
        init: initial weights, "torch" (PyTorch's) or "released" (see `ztw.models.initialisation`).

    Raises:
        ZtwError: for an unknown pooling or init.
    """

    pooling: str = "mixed"
    width: float = 1.0
    layer_norm: bool = False
    init: str = "torch"

    def __post_init__(self) -> None:
        if self.pooling not in (*POOLINGS, FIRST):
            raise unknown("pooling", self.pooling, [*POOLINGS, FIRST])
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
        """Compute logits float32 (N, classes) from features and the previous exit's logits, or None.

        Args:
            features: (N, ...), or with an attention mask the pair (tokens (N, T, D), mask (N, T)).
            previous: (N, classes), or None.
        """
        flat = self.body(features).float()
        return self.linear(flat if previous is None else torch.cat([flat, self.norm(previous)], dim=1))


class MeanToken(nn.Module):
    """Normalised mean of the tokens of a transformer block, without padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Compute (N, D) from tokens (N, T, D), or from (tokens, attention mask (N, T))."""
        if isinstance(features, Tensor):
            return self.norm(features.mean(1))
        tokens, mask = features
        kept = mask.to(tokens.dtype)[..., None]
        return self.norm((tokens * kept).sum(1) / kept.sum(1).clamp(min=1))


class FirstToken(nn.Module):
    """Normalised first token of a transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Compute (N, D) from tokens (N, T, D), or from (tokens, attention mask (N, T))."""
        tokens = features if isinstance(features, Tensor) else features[0]
        return self.norm(tokens[:, 0])


class Transposed(nn.Module):
    """A body for tokens that is given a signal (N, C, L)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, signal: Tensor) -> Tensor:
        """Call the body on (N, L, C)."""
        return self.body(signal.transpose(1, 2))


def _vector_body(feature_shape: tuple[int, ...], options: HeadOptions) -> nn.Module:
    """Return a module from a vector (D,) or tokens (T, D) to a vector."""
    if len(feature_shape) == 1:
        return nn.Identity()
    return (FirstToken if options.pooling == FIRST else MeanToken)(feature_shape[-1])


def _vector_head(
    feature_shape: tuple[int, ...], num_classes: int, previous: int, options: HeadOptions
) -> Head:
    """Return a head for features without a map: one Linear, on a vector (D,) or on the mean of tokens (T, D)."""
    body = _vector_body(feature_shape, options)
    return Head(body, feature_shape[-1], num_classes, previous, options.layer_norm)


def _pooling(options: HeadOptions, side: int) -> nn.Module:
    if options.pooling == FIRST:
        raise ZtwError("pooling 'first': needs tokens (N, T, D), not a map; use mixed, avg or max")
    return POOLINGS[options.pooling](side)


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
        feature_shape: (C, H, W) of the block's output; (D,) and (T, D) get a head without a convolution.
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
    layers += [_pooling(options, pooled), nn.Flatten()]
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
    body = nn.Sequential(_pooling(options, side), nn.Flatten())
    return Head(body, channels * side * side, num_classes, previous, options.layer_norm)


def mlp_head(
    feature_shape: tuple[int, ...], num_classes: int, previous: int, image_size: int, options: HeadOptions
) -> Head:
    """Build a head with a hidden layer: pooling, Linear, ReLU, Linear. The option width sets the hidden units."""
    hidden = max(1, round(options.width * feature_shape[0 if len(feature_shape) == 3 else -1]))
    if len(feature_shape) < 3:
        layers, features = [_vector_body(feature_shape, options)], feature_shape[-1]
    else:
        side = min(4, *feature_shape[1:])
        layers, features = [_pooling(options, side), nn.Flatten()], feature_shape[0] * side * side
    body = nn.Sequential(*layers, nn.Linear(features, hidden), nn.ReLU(inplace=True))
    return Head(body, hidden, num_classes, previous, options.layer_norm)


class LogitsHead(nn.Module):
    """A head without weights, for features that are logits already."""

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, classes) in float32."""
        return features.float()


def identity_head(
    feature_shape: tuple[int, ...], num_classes: int, previous: int, image_size: int, options: HeadOptions
) -> nn.Module:
    """Build a head for features that are logits already, as in a cascade of models.

    Arguments as in `conv_head`. It ignores image_size and options.

    Raises:
        ZtwError: unless the features are (num_classes,), and for a connection that passes logits to the head.
    """
    if tuple(feature_shape) != (num_classes,):
        raise ZtwError(
            f"head 'identity': features {tuple(feature_shape)}, must be logits ({num_classes},); use another head"
        )
    if previous:
        raise ZtwError(
            "head 'identity': cannot take the previous exit's logits; use connection='independent'"
        )
    return LogitsHead()


# (feature shape without the batch axis, num_classes, number of previous logits, side of the images, options) -> head
HeadBuilder = Callable[[tuple[int, ...], int, int, int, HeadOptions], nn.Module]
HEADS: dict[str, HeadBuilder] = {
    "conv": conv_head,
    "pool": pool_head,
    "mlp": mlp_head,
    "identity": identity_head,
}
