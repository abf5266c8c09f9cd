"""Metadata of architectures: names, numbers of blocks, options."""

from __future__ import annotations

from ztw.catalogue.parts import own
from ztw.catalogue.timm import TIMM_PREFIX
from ztw.catalogue.torchvision import TORCHVISION_BLOCKS, TORCHVISION_PREFIX

Placement = str | tuple[int | float, ...]
# SDN's exits (Kaya et al. 2019), as shares of the backbone's cost. They are also SDN's loss weights in the last epoch.
SDN_SHARES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
CIFAR_RESNETS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 38, 44, 56, 110))
ARCHS = (*CIFAR_RESNETS, "vgg16_bn", "wide_resnet_32_4", "mobilenet")
BLOCKS = {"vgg16_bn": 14, "wide_resnet_32_4": 15, "mobilenet": 13}
SMALLEST_IMAGE = {"vgg16_bn": 32}
# Architectures for which SDN has exits at other blocks than the nearest to SDN_SHARES
SDN_BLOCKS = {"mobilenet": (2, 4, 6, 8, 11)}
# Options of some architectures: option -> (these architectures in words, for error messages; their names)
OPTION_OWNERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "shortcut": ("the CIFAR ResNets have", CIFAR_RESNETS),
    "ic_features": ("the CIFAR ResNets have", CIFAR_RESNETS),
    "last_norm_momentum": ("wide_resnet_32_4 has", ("wide_resnet_32_4",)),
    "init": ("the paper's architectures have", ARCHS),
}


def archs() -> list[str]:
    """List the names of all architectures but torchvision's and timm's, registered ones last."""
    return [*ARCHS, *own("backbone")]


def list_backbones() -> list[str]:
    """List the names of all backbones: built-in, registered, and torchvision's.

    `timm.list_models()` lists more than a thousand others; put "timm/" before a name.

    Example:
        >>> import ztw
        >>> ztw.list_backbones()[:2]
        ['resnet8', 'resnet14']
    """
    return [*archs(), *(TORCHVISION_PREFIX + name for name in TORCHVISION_BLOCKS)]


def smallest_image(arch: str) -> int:
    """Return the smallest image side that an architecture accepts, in pixels."""
    return own("backbone")[arch]["smallest_image"] if arch in own("backbone") else SMALLEST_IMAGE.get(arch, 1)


def blocks(arch: str) -> int | None:
    """Return the number of blocks: 3n for a CIFAR ResNet of 6n + 2 layers; None for a timm model, not yet built."""
    if arch in own("backbone"):
        return own("backbone")[arch]["blocks"]
    if arch.startswith(TIMM_PREFIX):
        return None
    if arch.startswith(TORCHVISION_PREFIX):
        return TORCHVISION_BLOCKS[arch.removeprefix(TORCHVISION_PREFIX)]
    if arch in BLOCKS:
        return BLOCKS[arch]
    return (int(arch.removeprefix("resnet")) - 2) // 2


def listed_placement(placement: Placement, arch: str) -> Placement:
    """Replace the placement "sdn" by block indices or cost shares. Others stay unchanged."""
    return SDN_BLOCKS.get(arch, SDN_SHARES) if placement == "sdn" else placement


def placement_step(placement: str) -> int | None:
    """Return the step of a placement in text: 1 for "all", n for "every n", None for any other text."""
    word, _, number = placement.partition(" ")
    if placement == "all":
        return 1
    return int(number) if word == "every" and number.isdigit() and int(number) else None
