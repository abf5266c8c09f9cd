"""Test the published operation counter on all 24 cells of the paper, against a second counter in this file.

Every function returns the operations of a layer and, if it changes, the side of its output. As in the released code, an
exit's cost is the cost of all layers that are defined up to the exit, in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import nn

import ztw
from ztw.models.heads import HEADS, HeadOptions, stride_and_padding
from ztw.models.pooling import MixedPool
from ztw.models.published_counter import module_operations

# data set -> (side of the images, classes)
DATASETS = {"cifar10": (32, 10), "cifar100": (32, 100), "tiny_imagenet": (64, 200)}
CONVOLUTIONS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOLED = (1, 3, 6, 9, 12)  # indices of VGG's convolutions that are followed by a max pool
SEPARABLE = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDED = (1, 3, 5, 11)  # MobileNet's blocks of stride 2

# A block: (operations, channels, side; 0 for a vector)
Block = tuple[int, int, int]


def conv(inputs: int, outputs: int, side: int, kernel: int = 3, bias: bool = False, groups: int = 1) -> int:
    return outputs * side**2 * (2 * kernel**2 * inputs // groups - 1 + bias) * groups


def linear(inputs: int, outputs: int) -> int:
    return (2 * inputs - 1) * outputs


def norm(width: int, side: int) -> int:
    return 2 * width * side**2


def relu(width: int, side: int) -> int:
    return width * side**2


def resnet56(size: int, num_classes: int) -> Iterator[Block]:
    side, width_in = 32, 16
    stem = conv(3, 16, side) + norm(16, side) + relu(16, side)
    for width in (16, 32, 64):
        for _ in range(9):
            side //= 2 if width != width_in else 1
            convs = conv(width_in, width, side) + conv(width, width, side)
            shortcut = conv(width_in, width, side, 1) + norm(width, side) if width != width_in else 0
            yield stem + convs + 2 * norm(width, side) + 2 * relu(width, side) + shortcut, width, side
            stem, width_in = 0, width
    yield side * 64 + linear(64, num_classes), 64, 0  # average pooling of windows of 8 pixels a side


def vgg16_bn(size: int, num_classes: int) -> Iterator[Block]:
    side, width_in = size, 3
    for index, width in enumerate(CONVOLUTIONS):
        cost = conv(width_in, width, side, bias=True) + norm(width, side) + relu(width, side)
        side //= 2 if index in POOLED else 1
        yield cost + (width * side**2 if index in POOLED else 0), width, side
        width_in = width
    first, second = (512, 512) if size == 32 else (2048, 1024)
    yield linear(512 * side**2, first) + first, first, 0
    yield linear(first, second) + linear(second, num_classes), second, 0


def wide_resnet_32_4(size: int, num_classes: int) -> Iterator[Block]:
    side, width_in = 32, 16
    stem = conv(3, 16, side, bias=True)
    for width in (64, 128, 256):
        for index in range(5):
            before, side = side, side // (2 if width > 64 and not index else 1)
            cost = norm(width_in, before) + relu(width_in, before) + conv(width_in, width, before, bias=True)
            cost += norm(width, before) + relu(width, before) + conv(width, width, side, bias=True)
            cost += conv(width_in, width, side, 1, bias=True) if width != width_in else 0
            yield stem + cost, width, side
            stem, width_in = 0, width
    yield norm(256, side) + relu(256, side) + side * 256 + linear(256, num_classes), 256, 0


def mobilenet(size: int, num_classes: int) -> Iterator[Block]:
    side, width_in = size, 32
    stem = conv(3, 32, side) + norm(32, side) + relu(32, side)
    for index, width in enumerate(SEPARABLE):
        side //= 2 if index in STRIDED else 1
        cost = conv(width_in, width_in, side, groups=width_in) + norm(width_in, side) + relu(width_in, side)
        cost += conv(width_in, width, side, 1) + norm(width, side) + relu(width, side)
        yield stem + cost, width, side
        stem, width_in = 0, width
    yield side * 1024 + linear(1024, num_classes), 1024, 0


# costs depend on shapes alone
pytestmark = pytest.mark.usefixtures("uninitialised")

ARCHS = {f.__name__: f for f in (resnet56, vgg16_bn, wide_resnet_32_4, mobilenet)}


def head(block: Block, size: int, num_classes: int, previous: int) -> int:
    _, width, side = block
    if not side:
        return linear(width + previous, num_classes)
    if size == 64:
        convolved, side = (side + (4 if side > 8 else 2) - 3) // 2 + 1, side // 2
    else:
        convolved = side
    cost = conv(width, width, convolved, bias=True) + relu(width, convolved)
    pooled, window = (4, side // 4) if side >= 4 else (side, 0)
    if window:
        cost += width * pooled**2 * (window - 1) + width * pooled**2 * window
    return cost + linear(width * pooled**2 + previous, num_classes)


def released_costs(arch: str, dataset: str, cascade: bool) -> tuple[list[int], int]:
    """Return the operations of a sample at every exit, and of the backbone alone."""
    size, num_classes = DATASETS[dataset]
    *blocks, (last, _, _) = ARCHS[arch](size, num_classes)
    exits, spent = [], 0
    for index, block in enumerate(blocks):
        spent += block[0] + head(block, size, num_classes, num_classes if cascade and index else 0)
        exits.append(spent)
    return [*exits, spent + last], sum(cost for cost, _, _ in blocks) + last


@pytest.mark.parametrize(("arch", "dataset"), list(product(ARCHS, DATASETS)))
def test_all_cells_of_the_paper(arch, dataset):
    size, num_classes = DATASETS[dataset]
    backbone = ztw.build_backbone(arch, num_classes, size=size)
    assert ztw.macs(backbone, "published") == released_costs(arch, dataset, cascade=False)[1]
    for connection in ("independent", "cascade"):
        exits, _ = released_costs(arch, dataset, connection == "cascade")
        assert ztw.macs(ztw.build_network(backbone, connection), "published").tolist() == exits


@pytest.mark.parametrize(
    ("pool", "side", "pooled", "operations"),
    [
        (nn.MaxPool2d(3, 2, 1), 112, 56, 2),  # ResNet's stem: neighbouring windows overlap
        (nn.MaxPool2d((2, 2)), 8, 4, 1),
        (nn.AvgPool2d(3, 2, 1), 8, 4, 3),
        (nn.AdaptiveMaxPool2d(4), 9, 4, 2),
        (nn.AdaptiveAvgPool2d(1), 7, 1, 7),
        (MixedPool(4), 8, 4, 3),
        (MixedPool(2), 2, 2, 0),  # a map below 4 pixels a side is not pooled
    ],
)
def test_operations_of_a_pool_by_hand(pool, side, pooled, operations):
    """operations: per output pixel, the kernel's side - 1 for a maximum, the kernel's side for an average."""
    assert module_operations(pool, torch.zeros(1, 64, side, side)) == operations * 64 * pooled**2


def bottleneck(inputs: int, width: int, side: int, stride: int) -> int:
    """Return the operations of torchvision's bottleneck, with the stride in the 3x3 convolution."""
    out, expanded = side // stride, 4 * width
    cost = conv(inputs, width, side, 1) + norm(width, side) + relu(width, side)
    cost += conv(width, width, out) + norm(width, out) + relu(width, out)
    cost += conv(width, expanded, out, 1) + norm(expanded, out) + relu(expanded, out)
    return cost + (conv(inputs, expanded, out, 1) + norm(expanded, out) if inputs != expanded else 0)


@pytest.fixture(scope="module")
def imagenets_resnet50() -> ztw.Backbone:
    return ztw.build_backbone("torchvision/resnet50", 1000, size=224)


def test_imagenets_resnet50_by_hand(imagenets_resnet50):
    stem_pool = 2 * 64 * 56**2  # twice the cost of an adaptive pool from 112 to 56 pixels
    cost = conv(3, 64, 112, 7) + norm(64, 112) + relu(64, 112) + stem_pool
    side, inputs = 56, 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for index in range(count):
            stride = 2 if width > 64 and not index else 1
            cost += bottleneck(inputs, width, side, stride)
            side, inputs = side // stride, 4 * width
    cost += 7 * 2048 + linear(2048, 1000)
    assert ztw.macs(imagenets_resnet50, "published") == cost


@pytest.mark.parametrize("connection", ["independent", "cascade_detached"])
def test_exits_of_imagenets_resnet50(connection, imagenets_resnet50):
    network = ztw.build_network(
        imagenets_resnet50, connection, placement=[0, 4, 8, 12], width=0.25, layer_norm=True
    )
    shares = ztw.macs(network, "published") / ztw.macs(imagenets_resnet50, "published")
    assert [round(100 * share, 1) for share in shares.tolist()][:-1] == [11.4, 39.5, 67.5, 91.8]
    assert round(100 * float(shares[-1]), 1) == 111.6


@pytest.mark.parametrize(
    ("image_size", "side", "expected"),
    [
        (32, 32, (1, 1)),
        (32, 2, (1, 1)),
        (63, 63, (1, 1)),
        (64, 64, (2, 2)),
        (64, 9, (2, 2)),
        (64, 8, (2, 1)),
        (223, 14, (2, 2)),
        (224, 56, (2, 1)),
        (224, 9, (2, 1)),
        (224, 8, (1, 1)),
        (384, 7, (1, 1)),
    ],
)
def test_the_convolution_of_a_head(image_size, side, expected):
    assert stride_and_padding(image_size, side) == expected
    head = HEADS["conv"]((4, side, side), 5, 0, image_size, HeadOptions())
    assert head(torch.randn(2, 4, side, side)).shape == (2, 5)
