"""The table of architectures, and building one by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ztw.backbone import Backbone
from ztw.classic import cifar_resnet, mobilenet, vgg16_bn, wide_resnet_32_4
from ztw.errors import ZtwError, unknown

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **{f"resnet{depth}": cifar_resnet(depth) for depth in (8, 14, 20, 26, 32, 38, 44, 56, 110)},
    "vgg16_bn": vgg16_bn,
    "wide_resnet_32_4": wide_resnet_32_4,
    "mobilenet": mobilenet,
}


def build_backbone(arch: str, classes: int = 10, channels: int = 3, size: int = 32) -> Backbone:
    """Build a backbone with random weights.

    arch: a name of BACKBONES; size: side of the square input in pixels.
    Raises ZtwError for an unknown name or a class count below 2.
    """
    if arch not in BACKBONES:
        raise unknown("architecture", arch, BACKBONES)
    if classes < 2:
        raise ZtwError(f"classes {classes!r}: a classifier needs at least 2")
    return BACKBONES[arch](arch, classes, channels, size).to(memory_format=torch.channels_last)
