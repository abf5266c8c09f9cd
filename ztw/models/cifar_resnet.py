"""The CIFAR ResNets (He et al. 2016), for 32x32 and 64x64 images."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ztw.models.backbone import Backbone, BackboneOptions, Fp32Linear


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias and its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: every stride-th pixel, the new channels zero, half of them on either side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = (outputs - inputs) // 2, -((inputs - outputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def conv_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option B of He et al. 2016: a 1x1 convolution and its BatchNorm."""
    return conv_bn(inputs, outputs, 1, stride)


# What a CIFAR ResNet's shortcut is where the shape changes: name -> builder(inputs, outputs, stride)
SHORTCUTS: dict[str, Callable[[int, int, int], nn.Module]] = {"conv": conv_shortcut, "pad": PadShortcut}


class BlockReLU(nn.ReLU):
    """The ReLU after a block's sum. A type of its own: the published counter counts it with the block."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, up to their sum (He et al. 2016).

    The shortcut needs one of SHORTCUTS where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str = "conv") -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2 = conv_bn(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = SHORTCUTS[shortcut](inputs, outputs, stride) if changes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return self.conv2(self.relu(self.conv1(x))) + self.shortcut(x)


class ReLUThenBlock(BasicBlock):
    """A block that begins with the ReLU of the one before."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str = "conv") -> None:
        super().__init__(inputs, outputs, stride, shortcut)
        self.block_relu = BlockReLU()  # not in place: an IC may still need its input

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return super().forward(self.block_relu(x))


class BlockThenReLU(BasicBlock):
    """A block that ends with its ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str = "conv") -> None:
        super().__init__(inputs, outputs, stride, shortcut)
        self.block_relu = BlockReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return self.block_relu(super().forward(x))


# Where the stages of a CIFAR ResNet are cut, and so what its ICs see: a block's sum or the ReLU of it.
# name -> (first block, the others, what the classifier begins with)
IC_FEATURES: dict[str, tuple[type[BasicBlock], type[BasicBlock], type[nn.Module]]] = {
    "before_relu": (BasicBlock, ReLUThenBlock, BlockReLU),  # the released code's
    "after_relu": (BlockThenReLU, BlockThenReLU, nn.Identity),
}


def cifar_resnet(depth: int) -> Callable[..., Backbone]:
    """The CIFAR ResNet of 6n+2 layers: 3 groups of n basic blocks with 16, 32, 64 channels."""

    def build(arch: str, num_classes: int, channels: int, size: int, options: BackboneOptions) -> Backbone:
        kind, later, start = IC_FEATURES[options.ic_features]
        blocks: list[nn.Module] = []
        width_in = 16
        for group, width in enumerate((16, 32, 64)):
            for index in range((depth - 2) // 6):
                blocks.append(kind(width_in, width, 2 if group and not index else 1, options.shortcut))
                width_in, kind = width, later
        stem_stride = 2 if size >= 64 else 1  # the released recipe's Tiny ImageNet stem
        stem = nn.Sequential(conv_bn(channels, 16, 3, stem_stride), nn.ReLU(inplace=True))
        blocks[0] = nn.Sequential(stem, blocks[0])
        pool = nn.Sequential(start(), nn.AdaptiveAvgPool2d(1))
        classifier = nn.Sequential(pool, nn.Flatten(), Fp32Linear(64, num_classes))
        return Backbone(arch, blocks, classifier, (channels, size, size))

    return build
