"""Names of data sets and architectures for titles of figures and tables."""

from __future__ import annotations

import re

DATASET_TITLES = {
    "cifar10": "CIFAR-10",
    "cifar10-jpeg": "CIFAR-10 (JPEG)",
    "cifar100": "CIFAR-100",
    "debian-sections": "Debian sections",
    "digits": "Digits",
    "fashion_mnist": "Fashion-MNIST",
    "imagenet": "ImageNet",
    "svhn": "SVHN",
    "tiny_imagenet": "Tiny ImageNet",
}
ARCH_TITLES = {
    "minilm-l6": "MiniLM-L6",
    "mobilenet": "MobileNet",
    "vgg16_bn": "VGG-16",
    "wide_resnet_32_4": "Wide ResNet-32-4",
}
_RESNET = re.compile(r"resnet(\d+)")


def title_of(dataset: str, arch: str) -> str:
    """Return a title such as "ResNet-56 on CIFAR-10"; names that are not known stay as they are written."""
    resnet = _RESNET.fullmatch(arch)
    network = f"ResNet-{resnet[1]}" if resnet else ARCH_TITLES.get(arch, arch)
    return f"{network} on {DATASET_TITLES.get(dataset, dataset)}"
