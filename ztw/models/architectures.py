"""The table of architectures, BACKBONES, and building a backbone by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ztw.catalogue.architectures import CIFAR_RESNETS, OPTION_OWNERS
from ztw.catalogue.timm import TIMM_PREFIX, check_timm_name
from ztw.catalogue.torchvision import TORCHVISION_PREFIX
from ztw.errors import ZtwError, unknown
from ztw.models.backbone import Backbone, BackboneOptions, Resized
from ztw.models.cifar import mobilenet, vgg16_bn, wide_resnet_32_4
from ztw.models.cifar_resnet import IC_FEATURES, SHORTCUTS, cifar_resnet
from ztw.models.initialisation import INITS, initialise_backbone

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **{name: cifar_resnet(int(name.removeprefix("resnet"))) for name in CIFAR_RESNETS},
    "vgg16_bn": vgg16_bn,
    "wide_resnet_32_4": wide_resnet_32_4,
    "mobilenet": mobilenet,
}


def build_backbone(
    arch: str,
    num_classes: int = 10,
    channels: int = 3,
    size: int = 32,
    *,
    weights: str | None = None,
    **options: Any,
) -> Backbone:
    """Build a backbone, with random weights or with torchvision's.

    Args:
        arch: name of the architecture, one of `list_backbones()`, or "timm/<name>" with a name of
            `timm.list_models()`.
        num_classes: number of classes, at least 2.
        channels: number of image channels.
        size: side of the square images in pixels.
        weights: None = random weights. For torchvision's models also "DEFAULT" = the best ImageNet weights, or
            "IMAGENET1K_V1" = the first published ones.
        options: shortcut, ic_features, last_norm_momentum, init, input_size; see
            `ztw.models.backbone.BackboneOptions`.

    Returns:
        The backbone, in training mode.

    Raises:
        ZtwError: for an unknown name, fewer than 2 classes, options, weights or images that the architecture does not
            support, and a failed download.

    Example:
        >>> import torch, ztw
        >>> backbone = ztw.build_backbone("resnet8", num_classes=100)
        >>> backbone(torch.randn(4, 3, 32, 32)).shape
        torch.Size([4, 100])
    """
    if num_classes < 2:
        raise ZtwError(f"num_classes {num_classes!r}: must be at least 2")
    chosen = BackboneOptions.of(options)
    _check_options(arch, chosen)
    given = {"arch": arch, "num_classes": num_classes, "channels": channels, "size": size}
    backbone = _build(arch, num_classes, channels, chosen.input_size or size, weights, chosen)
    if chosen.input_size is not None:
        backbone = _resizing(backbone, chosen.input_size, size)
    backbone.origin = {"build_backbone": given | asdict(chosen)}
    return backbone.to(memory_format=torch.channels_last)


def _build(
    arch: str, num_classes: int, channels: int, size: int, weights: str | None, chosen: BackboneOptions
) -> Backbone:
    if arch.startswith(TORCHVISION_PREFIX):
        # importing torchvision takes seconds, and most jobs do not need it
        from ztw.models.torchvision_cut import cut

        return cut(arch, num_classes, channels, size, weights)
    if weights is not None:
        raise ZtwError(f"weights {weights!r}: only torchvision's models have pretrained weights, not {arch}")
    if arch.startswith(TIMM_PREFIX):
        from ztw.models.timm_cut import cut as cut_timm  # the same holds for timm

        return cut_timm(arch, num_classes, channels, size)
    backbone = BACKBONES[arch](arch, num_classes, channels, size, chosen)
    if chosen.init == "released":
        initialise_backbone(backbone)
    return backbone


def _resizing(backbone: Backbone, size: int, given: int) -> Backbone:
    """Let a backbone for images of size x size pixels take images of given x given pixels."""
    first, *others = backbone.stages
    channels = backbone.input_shape[0]
    resizing = Backbone(
        backbone.arch, [Resized(first, size), *others], backbone.classifier, (channels, given, given)
    )
    resizing.channels_first = backbone.channels_first
    return resizing


def _check_options(arch: str, chosen: BackboneOptions) -> None:
    if arch.startswith(TIMM_PREFIX):
        check_timm_name(arch)
    elif arch not in BACKBONES and not arch.startswith(TORCHVISION_PREFIX):
        others = [f"{prefix}<name>" for prefix in (TORCHVISION_PREFIX, TIMM_PREFIX)]
        raise unknown("architecture", arch, [*BACKBONES, *others])
    for name, known in (("shortcut", SHORTCUTS), ("ic_features", IC_FEATURES), ("init", INITS)):
        if getattr(chosen, name) not in known:
            raise unknown(name, getattr(chosen, name), known)
    if chosen.input_size is not None and not (isinstance(chosen.input_size, int) and chosen.input_size >= 1):
        raise ZtwError(f"input_size {chosen.input_size!r}: must be None or a number of pixels, at least 1")
    for name, (who, owners) in OPTION_OWNERS.items():
        value = getattr(chosen, name)
        if value != getattr(BackboneOptions, name) and arch not in owners:
            raise ZtwError(f"{name} {value!r}: only {who} it, not {arch}")
