"""What a study may name, and what must be known of it before anything runs. Imports no torch."""

from __future__ import annotations

from typing import Any

from ztw.study.torchvision_names import TORCHVISION_BLOCKS, TORCHVISION_PREFIX

CIFAR_RESNETS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 38, 44, 56, 110))
ARCHS = (*CIFAR_RESNETS, "vgg16_bn", "wide_resnet_32_4", "mobilenet")
BLOCKS = {"vgg16_bn": 14, "wide_resnet_32_4": 15, "mobilenet": 13}
SMALLEST_IMAGE = {"vgg16_bn": 32}
# side of the images in pixels
BUILT_IN_DATASETS = {
    "fashion_mnist": 28,
    "cifar10": 32,
    "cifar100": 32,
    "tiny_imagenet": 64,
    "svhn": 32,
    "imagenet": 224,
    "digits": 8,
}
GREY = ("fashion_mnist", "digits")
ENSEMBLE_KINDS = ("geometric", "arithmetic", "uniform")
NO_THRESHOLD = ("patience",)
RECIPE = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "momentum",
    "schedule",
    "milestones",
    "gamma",
)
ANATOMY = ("head", "pooling", "width", "layer_norm", "placement")
EXIT_WEIGHTS = ("uniform", "depth", "growing")

Config = dict[str, Any]


def blocks(arch: str) -> int:
    """Number of blocks a head can sit on: 3n for the ResNet of 6n+2 layers."""
    if arch.startswith(TORCHVISION_PREFIX):
        return TORCHVISION_BLOCKS[arch.removeprefix(TORCHVISION_PREFIX)]
    if arch in BLOCKS:
        return BLOCKS[arch]
    return (int(arch.removeprefix("resnet")) - 2) // 2


def image_size(config: Config, dataset: str) -> int:
    """Side of a data set's images in pixels."""
    folders = config["data"]["image_folders"]
    return folders[dataset]["size"] if dataset in folders else BUILT_IN_DATASETS[dataset]


def placement_step(placement: str) -> int | None:
    """1 for "all", n for "every n", None for any other text."""
    word, _, number = placement.partition(" ")
    if placement == "all":
        return 1
    return int(number) if word == "every" and number.isdigit() and int(number) else None
