"""Compute ZTW's released networks by torch's functions: blocks, heads and cascade, from a list of weights.

Written from the description of the released recipe, without ztw, for a comparison with ztw's modules. Weights are in
the order in which the released modules are defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

VGG = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
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


class Weights:
    """Weights that are used one after the other."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.left = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]

    def conv(self, x: Tensor, stride: int = 1, bias: bool = False, groups: int = 1) -> Tensor:
        weight = self.left.pop(0)
        padding = weight.shape[-1] // 2
        return F.conv2d(x, weight, self.left.pop(0) if bias else None, stride, padding, groups=groups)

    def norm(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (self.left.pop(0) for _ in range(4))
        return F.batch_norm(x, mean, var, weight, bias)

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.left.pop(0), self.left.pop(0))


# The features of the ICs, and the network's own logits
Outputs = tuple[list[Tensor], Tensor]


def resnet(blocks: int, state: Mapping[str, Tensor], x: Tensor) -> Outputs:
    weights, seen = Weights(state), list[Tensor]()
    x = F.relu(weights.norm(weights.conv(x, stride=x.shape[-1] // 32)))
    for width in (16, 32, 64):
        for index in range(blocks):
            stride = 2 if width > 16 and not index else 1
            inner = F.relu(weights.norm(weights.conv(x, stride)))
            inner = weights.norm(weights.conv(inner))
            both = inner + (weights.norm(weights.conv(x, stride)) if stride == 2 else x)
            seen.append(both)  # before the ReLU
            x = F.relu(both)
    return seen, weights.linear(x.mean((2, 3)))


def vgg16_bn(state: Mapping[str, Tensor], x: Tensor) -> Outputs:
    weights, seen = Weights(state), list[Tensor]()
    for item in VGG:
        if item == "M":
            x = seen[-1] = F.max_pool2d(x, 2)
        else:
            x = F.relu(weights.norm(weights.conv(x, bias=True)))
            seen.append(x)
    x = F.relu(weights.linear(x.flatten(1)))
    seen.append(x)
    return seen, weights.linear(weights.linear(x))  # there is no ReLU between the two Linears


def wide_resnet_32_4(state: Mapping[str, Tensor], x: Tensor) -> Outputs:
    weights, seen = Weights(state), list[Tensor]()
    x = weights.conv(x, stride=x.shape[-1] // 32, bias=True)
    for width in (64, 128, 256):
        for index in range(5):
            stride = 2 if width > 64 and not index else 1
            inner = weights.conv(F.relu(weights.norm(x)), bias=True)
            inner = weights.conv(F.relu(weights.norm(inner)), stride, bias=True)
            x = inner + (weights.conv(x, stride, bias=True) if x.shape[1] != width else x)
            seen.append(x)
    return seen, weights.linear(F.relu(weights.norm(x)).mean((2, 3)))


def mobilenet(state: Mapping[str, Tensor], x: Tensor) -> Outputs:
    weights, seen = Weights(state), list[Tensor]()
    x = F.relu(weights.norm(weights.conv(x)))
    for _, stride in MOBILENET:
        x = F.relu(weights.norm(weights.conv(x, stride, groups=x.shape[1])))
        x = F.relu(weights.norm(weights.conv(x)))
        seen.append(x)
    return seen, weights.linear(x.mean((2, 3)))


def head(weights: Iterable[Tensor], x: Tensor, size: int, previous: Tensor | None) -> Tensor:
    """Return the logits of an IC on a block's output; weights: convolution, alpha, Linear; size: side of the images."""
    *convolution, weight, bias = weights
    if x.dim() == 4:
        kernel, offset, alpha = convolution
        side = x.shape[-1]
        if size == 64:
            x = F.conv2d(x, kernel, offset, stride=2, padding=2 if side > 8 else 1)
            side //= 2
        else:
            x = F.conv2d(x, kernel, offset, padding=1)
        x = F.relu(x)
        if side >= 4:
            x = alpha * F.max_pool2d(x, side // 4) + (1 - alpha) * F.avg_pool2d(x, side // 4)
    x = x.flatten(1)
    return F.linear(x if previous is None else torch.cat([x, previous], dim=1), weight, bias)


def ic_logits(heads: list[list[Tensor]], seen: list[Tensor], size: int, connection: str) -> list[Tensor]:
    """Return the logits of all ICs, one per block; connection: "independent", "cascade" or "cascade_detached".

    The gradient is stopped at every IC, as in the paper. The released code does not stop it at VGG's first Linear.
    """
    outputs: list[Tensor] = []
    for weights, features in zip(heads, seen, strict=True):
        previous = outputs[-1] if outputs and connection != "independent" else None
        if previous is not None and connection == "cascade_detached":
            previous = previous.detach()
        outputs.append(head(weights, features, size, previous))
    return outputs
