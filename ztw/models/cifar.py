"""The paper's backbones: CIFAR ResNets, VGG-16BN, WRN-32-4 and MobileNet-V1, for 32x32 and 64x64 images."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ztw.errors import ZtwError
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

    def build(arch: str, classes: int, channels: int, size: int, options: BackboneOptions) -> Backbone:
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
        classifier = nn.Sequential(pool, nn.Flatten(), Fp32Linear(64, classes))
        return Backbone(arch, blocks, classifier, (channels, size, size))

    return build


VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
MOBILENET = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


def vgg16_bn(arch: str, classes: int, channels: int, size: int, options: BackboneOptions) -> Backbone:
    """13 convolutions and two fully connected layers; the second belongs to the classifier.

    An exit may be placed after each convolution and after the first fully connected layer: 14. As in the
    released code there is no ReLU between the last two Linears.
    """
    if size < 32:
        raise ZtwError(f"{arch}: its five poolings need images of at least 32x32 pixels, not {size}x{size}")
    stages: list[nn.Module] = []
    width = channels
    for item in VGG16:
        if item == "M":
            stages[-1] = nn.Sequential(*stages[-1].children(), nn.MaxPool2d(2))
            continue
        block = nn.Sequential(
            nn.Conv2d(width, int(item), 3, padding=1), nn.BatchNorm2d(int(item)), nn.ReLU(inplace=True)
        )
        stages.append(block)
        width = int(item)
    hidden = (2048, 1024) if size >= 64 else (512, 512)
    side = size // 32
    stages.append(
        nn.Sequential(
            nn.Flatten(), nn.Linear(512 * side**2, hidden[0]), nn.ReLU(inplace=True), nn.Dropout(0.5)
        )
    )
    classifier = nn.Sequential(nn.Linear(*hidden), nn.Dropout(0.5), Fp32Linear(hidden[1], classes))
    return Backbone(arch, stages, classifier, (channels, size, size))


class WideBlock(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution, dropout, and again, with a shortcut (Zagoruyko & Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        # in the released code's order of definition, which its files of weights are matched by
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if changes else nn.Identity()
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        hidden = self.dropout(self.conv1(self.relu(self.norm1(x))))
        return self.conv2(self.relu(self.norm2(hidden))) + self.shortcut(x)


def wide_resnet_32_4(arch: str, classes: int, channels: int, size: int, options: BackboneOptions) -> Backbone:
    """3 groups of 5 wide blocks with 64, 128, 256 channels, dropout 0.3."""
    stages: list[nn.Module] = []
    width_in = 16
    for group, width in enumerate((64, 128, 256)):
        for index in range(5):
            stages.append(WideBlock(width_in, width, 2 if group and not index else 1, 0.3))
            width_in = width
    stem = nn.Conv2d(channels, 16, 3, 2 if size >= 64 else 1, padding=1)
    stages[0] = nn.Sequential(stem, stages[0])
    classifier = nn.Sequential(
        nn.BatchNorm2d(256, momentum=options.last_norm_momentum),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Fp32Linear(256, classes),
    )
    return Backbone(arch, stages, classifier, (channels, size, size))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def mobilenet(arch: str, classes: int, channels: int, size: int, options: BackboneOptions) -> Backbone:
    """MobileNet-V1 (Howard et al. 2017) with a stem of stride 1: 13 depthwise-separable blocks."""
    stem = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
    )
    stages: list[nn.Module] = []
    width_in = 32
    for width, stride in MOBILENET:
        stages.append(_separable(width_in, width, stride))
        width_in = width
    stages[0] = nn.Sequential(stem, stages[0])
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Fp32Linear(1024, classes))
    return Backbone(arch, stages, classifier, (channels, size, size))
