"""Backbones: a list of stages (where exits may be placed) and a classifier, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ztw.errors import ZtwError, unknown


class Backbone(nn.Module):
    """A network cut into stages; an exit can be placed after each.

    stages: modules applied in order, one per block (the stem belongs to the first);
    classifier: maps the last stage's output to logits (N, classes).
    """

    def __init__(
        self, arch: str, stages: Sequence[nn.Module], classifier: nn.Module, input_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.arch = arch
        self.input_shape = input_shape
        self.stages = nn.ModuleList(stages)
        self.classifier = classifier
        # Measured rather than computed, so that a new backbone needs no formula of its own.
        self.eval()
        with torch.no_grad():
            outputs = list(self.features(torch.zeros(1, *input_shape)))
            self.classes = int(self.classifier(outputs[-1]).shape[1])
        self.feature_shapes = [tuple(output.shape[1:]) for output in outputs]
        self.train()

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the output of every stage in turn, for images (N, C, H, W)."""
        hidden = images
        for stage in self.stages:
            hidden = stage(hidden)
            yield hidden

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> logits (N, classes)."""
        *_, last = self.features(images)
        return self.classifier(last)


class Fp32Linear(nn.Linear):
    """A Linear in float32 even under autocast: bfloat16 logits would tie many of the confidences."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias and its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1-convolved where the shape changes (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2 = conv_bn(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = conv_bn(inputs, outputs, 1, stride) if changes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))


def cifar_resnet(depth: int) -> Callable[..., Backbone]:
    """The CIFAR ResNet of 6n+2 layers: 3 groups of n basic blocks with 16, 32, 64 channels."""

    def build(arch: str, classes: int, channels: int, size: int) -> Backbone:
        blocks: list[nn.Module] = []
        width_in = 16
        for group, width in enumerate((16, 32, 64)):
            for index in range((depth - 2) // 6):
                blocks.append(BasicBlock(width_in, width, 2 if group and not index else 1))
                width_in = width
        stem_stride = 2 if size >= 64 else 1  # the released recipe's Tiny ImageNet stem
        stem = nn.Sequential(conv_bn(channels, 16, 3, stem_stride), nn.ReLU(inplace=True))
        blocks[0] = nn.Sequential(stem, blocks[0])
        classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Fp32Linear(64, classes))
        return Backbone(arch, blocks, classifier, (channels, size, size))

    return build


BACKBONES: dict[str, Callable[..., Backbone]] = {
    f"resnet{depth}": cifar_resnet(depth) for depth in (8, 14, 20, 26, 32, 38, 44, 56, 110)
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
