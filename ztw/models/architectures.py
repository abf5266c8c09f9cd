"""The table of architectures, and building one by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ztw.errors import ZtwError, unknown
from ztw.models.backbone import Backbone
from ztw.models.cifar import SHORTCUTS, cifar_resnet, mobilenet, vgg16_bn, wide_resnet_32_4
from ztw.study.names import CIFAR_RESNETS
from ztw.study.torchvision_names import TORCHVISION_PREFIX

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **{name: cifar_resnet(int(name.removeprefix("resnet"))) for name in CIFAR_RESNETS},
    "vgg16_bn": vgg16_bn,
    "wide_resnet_32_4": wide_resnet_32_4,
    "mobilenet": mobilenet,
}


def build_backbone(
    arch: str,
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    *,
    shortcut: str = "conv",
    weights: str | None = None,
) -> Backbone:
    """Build a backbone, with random weights unless `weights` says otherwise.

    arch: a name of BACKBONES, or "torchvision/" and a name of TORCHVISION_BLOCKS; size: side of the square
    input in pixels; shortcut: of the CIFAR ResNets, "conv" (1x1 convolution) or "pad" (no parameters,
    options B and A of He et al. 2016); weights: of torchvision's models, None or "DEFAULT" (ImageNet's).
    Raises ZtwError for an unknown name, a class count below 2, or an option the architecture does not have.
    """
    if classes < 2:
        raise ZtwError(f"classes {classes!r}: a classifier needs at least 2")
    if shortcut not in SHORTCUTS:
        raise unknown("shortcut", shortcut, SHORTCUTS)
    if shortcut != "conv" and arch not in CIFAR_RESNETS:
        raise ZtwError(f"shortcut {shortcut!r}: only the CIFAR ResNets have it, not {arch}")
    if arch.startswith(TORCHVISION_PREFIX):
        # imports torchvision: seconds that most jobs need not spend
        from ztw.models.torchvision_cut import cut

        backbone = cut(arch, classes, channels, size, weights)
    else:
        backbone = _build(arch, classes, channels, size, shortcut, weights)
    return backbone.to(memory_format=torch.channels_last)


def _build(arch: str, classes: int, channels: int, size: int, shortcut: str, weights: str | None) -> Backbone:
    """One of BACKBONES."""
    if arch not in BACKBONES:
        raise unknown("architecture", arch, [*BACKBONES, f"{TORCHVISION_PREFIX}<name>"])
    if weights is not None:
        raise ZtwError(f"weights {weights!r}: only torchvision's models have them, not {arch}")
    options = {"shortcut": shortcut} if arch in CIFAR_RESNETS else {}
    return BACKBONES[arch](arch, classes, channels, size, **options)
