"""Facts about architectures: names, blocks a head can sit on, options. Imports no torch."""

from __future__ import annotations

from ztw.catalogue.parts import own
from ztw.catalogue.torchvision import TORCHVISION_BLOCKS, TORCHVISION_PREFIX

Placement = str | tuple[int | float, ...]
# Where SDN's authors put exits (Kaya et al. 2019): shares of the backbone's cost, which are also their final weights
SDN_SHARES = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
CIFAR_RESNETS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 38, 44, 56, 110))
ARCHS = (*CIFAR_RESNETS, "vgg16_bn", "wide_resnet_32_4", "mobilenet")
BLOCKS = {"vgg16_bn": 14, "wide_resnet_32_4": 15, "mobilenet": 13}
SMALLEST_IMAGE = {"vgg16_bn": 32}
SDN_BLOCKS = {
    "mobilenet": (2, 4, 6, 8, 11)
}  # where its authors' exits are not at the blocks nearest SDN_SHARES
# Options of a backbone that only some architectures have: option -> (who has it, as an error says it; their names)
OPTION_OWNERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "shortcut": ("the CIFAR ResNets have", CIFAR_RESNETS),
    "ic_features": ("the CIFAR ResNets have", CIFAR_RESNETS),
    "last_norm_momentum": ("wide_resnet_32_4 has", ("wide_resnet_32_4",)),
    "init": ("the paper's architectures have", ARCHS),
}


def archs() -> list[str]:
    """The architectures but torchvision's, a user's own ones last."""
    return [*ARCHS, *own("backbone")]


def list_backbones() -> list[str]:
    """List the names of all backbones: the paper's, a user's own ones, torchvision's."""
    return [*archs(), *(TORCHVISION_PREFIX + name for name in TORCHVISION_BLOCKS)]


def smallest_image(arch: str) -> int:
    """The smallest side of the images an architecture takes, in pixels."""
    return own("backbone")[arch]["smallest_image"] if arch in own("backbone") else SMALLEST_IMAGE.get(arch, 1)


def blocks(arch: str) -> int:
    """Number of blocks a head can sit on: 3n for the ResNet of 6n+2 layers."""
    if arch in own("backbone"):
        return own("backbone")[arch]["blocks"]
    if arch.startswith(TORCHVISION_PREFIX):
        return TORCHVISION_BLOCKS[arch.removeprefix(TORCHVISION_PREFIX)]
    if arch in BLOCKS:
        return BLOCKS[arch]
    return (int(arch.removeprefix("resnet")) - 2) // 2


def listed_placement(placement: Placement, arch: str) -> Placement:
    """What `sdn` stands for on an architecture, block indices or shares of the cost; any other placement itself."""
    return SDN_BLOCKS.get(arch, SDN_SHARES) if placement == "sdn" else placement


def placement_step(placement: str) -> int | None:
    """1 for "all", n for "every n", None for any other text."""
    word, _, number = placement.partition(" ")
    if placement == "all":
        return 1
    return int(number) if word == "every" and number.isdigit() and int(number) else None
