"""The paper's other backbones: VGG-16BN, WRN-32-4 and MobileNet-V1, for 32x32 and 64x64 images."""

from __future__ import annotations

from torch import Tensor, nn

from ztw.errors import ZtwError
from ztw.models.backbone import Backbone, BackboneOptions, Fp32Linear

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


def vgg16_bn(arch: str, num_classes: int, channels: int, size: int, options: BackboneOptions) -> Backbone:
    """Build VGG-16 with BatchNorm: one stage per convolution, and one for the first fully connected layer.

    Like the released code, it has no ReLU between the last two Linears.
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
    classifier = nn.Sequential(nn.Linear(*hidden), nn.Dropout(0.5), Fp32Linear(hidden[1], num_classes))
    return Backbone(arch, stages, classifier, (channels, size, size))


class WideBlock(nn.Module):
    """(BatchNorm, ReLU, 3x3 convolution) twice, dropout in between, and a shortcut (Zagoruyko & Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        # in the order of the released code, so that its weights can be loaded in order
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if changes else nn.Identity()
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, outputs, H / stride, W / stride) from (N, inputs, H, W)."""
        hidden = self.dropout(self.conv1(self.relu(self.norm1(x))))
        return self.conv2(self.relu(self.norm2(hidden))) + self.shortcut(x)


def wide_resnet_32_4(
    arch: str, num_classes: int, channels: int, size: int, options: BackboneOptions
) -> Backbone:
    """Build WRN-32-4: 3 groups of 5 wide blocks with 64, 128 and 256 channels, dropout 0.3."""
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
        Fp32Linear(256, num_classes),
    )
    return Backbone(arch, stages, classifier, (channels, size, size))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return a depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def mobilenet(arch: str, num_classes: int, channels: int, size: int, options: BackboneOptions) -> Backbone:
    """Build MobileNet-V1 (Howard et al. 2017) with a stem of stride 1: 13 depthwise-separable blocks."""
    stem = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
    )
    stages: list[nn.Module] = []
    width_in = 32
    for width, stride in MOBILENET:
        stages.append(_separable(width_in, width, stride))
        width_in = width
    stages[0] = nn.Sequential(stem, stages[0])
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Fp32Linear(1024, num_classes))
    return Backbone(arch, stages, classifier, (channels, size, size))
