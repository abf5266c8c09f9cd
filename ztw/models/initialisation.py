"""The initial weights of ZTW's released code.

- ResNet and VGG: normal weights of variance 2 / n, n = kernel^2 * outputs (Kaiming, fan out), for convolutions.
- Wide ResNet: uniform weights (Xavier) for convolutions.
- MobileNet and its heads: PyTorch's own weights, because the released code has no initialiser for them.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from ztw.catalogue.architectures import ARCHS
from ztw.models.backbone import Backbone
from ztw.models.pooling import MixedPool

INITS = ("torch", "released")
WIDE_RESNET, VGG, MOBILENET = "wide_resnet_32_4", "vgg16_bn", "mobilenet"

# N(0, sqrt(2 / n)) and U(-a, a), a = sqrt(2) * sqrt(6 / (fan in + fan out))
_kaiming = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
_xavier = partial(nn.init.xavier_uniform_, gain=2**0.5)


def initialise_backbone(backbone: Backbone) -> None:
    """Draw the weights of one of the paper's backbones as the released code does. Biases become 0."""
    if backbone.arch == MOBILENET:
        return
    draw = _xavier if backbone.arch == WIDE_RESNET else _kaiming
    for part in backbone.modules():
        if isinstance(part, nn.Conv2d):
            draw(part.weight)
            _zero_bias(part)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
            _zero_bias(part)


def initialise_head(head: nn.Module, arch: str) -> None:
    """Draw the weights of a head as the released code does for an architecture.

    On MobileNet and torchvision's models, it draws only alpha of a mixed pool, from U(0, 1).
    """
    drawn = arch in ARCHS and arch != MOBILENET
    for part in head.modules():
        if isinstance(part, MixedPool):
            nn.init.uniform_(part.alpha)
        elif isinstance(part, nn.Conv2d) and drawn:
            _kaiming(part.weight)
            _zero_bias(part, arch == VGG)
        elif isinstance(part, nn.Linear):
            if arch == VGG:
                nn.init.normal_(part.weight, std=0.01)
            _zero_bias(part, arch in (VGG, WIDE_RESNET))


def _zero_bias(layer: nn.Conv2d | nn.Linear, wanted: bool = True) -> None:
    if wanted and layer.bias is not None:
        nn.init.zeros_(layer.bias)
