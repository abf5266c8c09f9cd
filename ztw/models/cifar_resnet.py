"""The CIFAR ResNets (He et al. 2016), for 32x32 and 64x64 images."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ztw.models.backbone import Backbone, BackboneOptions, Fp32Linear


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution without bias, and its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: subsample by the stride, and pad the channels with zeros on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = (outputs - inputs) // 2, -((inputs - outputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, outputs, H / stride, W / stride) from (N, inputs, H, W)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def conv_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return option B of He et al. 2016: a 1x1 convolution and its BatchNorm."""
    return conv_bn(inputs, outputs, 1, stride)


# Shortcuts of blocks that change the shape: name -> builder(inputs, outputs, stride)
SHORTCUTS: dict[str, Callable[[int, int, int], nn.Module]] = {"conv": conv_shortcut, "pad": PadShortcut}


class BlockReLU(nn.ReLU):
    """The ReLU after a block's sum. The published counter needs to tell it from other ReLUs."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus a shortcut, without the ReLU after the sum (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str = "conv") -> None:
        super().__init__()
        self.conv1 = conv_bn(inputs, outputs, 3, stride)
        self.conv2 = conv_bn(outputs, outputs, 3)
        changes = stride != 1 or inputs != outputs
        self.shortcut = SHORTCUTS[shortcut](inputs, outputs, stride) if changes else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, outputs, H / stride, W / stride) from (N, inputs, H, W)."""
        return self.conv2(self.relu(self.conv1(x))) + self.shortcut(x)


class ReLUThenBlock(BasicBlock):
    """A block that starts with the ReLU of the previous block."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str = "conv") -> None:
        super().__init__(inputs, outputs, stride, shortcut)
        self.block_relu = BlockReLU()  # not in place, because an IC may read the same input

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, outputs, H / stride, W / stride) from (N, inputs, H, W)."""
        return super().forward(self.block_relu(x))


class BlockThenReLU(BasicBlock):
    """A block that ends with its ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str = "conv") -> None:
        super().__init__(inputs, outputs, stride, shortcut)
        self.block_relu = BlockReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, outputs, H / stride, W / stride) from (N, inputs, H, W)."""
        return self.block_relu(super().forward(x))


# Where the stages of a CIFAR ResNet end: before or after the ReLU of a block's sum.
# name -> (first block, other blocks, first layer of the classifier)
IC_FEATURES: dict[str, tuple[type[BasicBlock], type[BasicBlock], type[nn.Module]]] = {
    "before_relu": (BasicBlock, ReLUThenBlock, BlockReLU),  # the released code's
    "after_relu": (BlockThenReLU, BlockThenReLU, nn.Identity),
}


def cifar_resnet(depth: int) -> Callable[..., Backbone]:
    """Return the builder of the CIFAR ResNet with 6n+2 layers: 3 groups of n basic blocks with 16, 32, 64 channels."""

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
