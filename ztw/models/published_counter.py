"""The operation counter of the released code. Use it only to compare with published figures.

It multiplies the cost of a grouped convolution by the number of groups twice, so MobileNet appears eight times too
expensive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ztw.device import check_default_dtype
from ztw.models.cifar_resnet import BasicBlock, BlockReLU
from ztw.models.pooling import MixedPool


def _convolution(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, nn.Conv2d)
    height, width = module.kernel_size
    products = 2 * height * width * module.in_channels // module.groups - 1 + (module.bias is not None)
    return y.numel() * products * module.groups  # the published double count


def _linear(module: nn.Module, x: Tensor, y: Tensor) -> float:
    assert isinstance(module, nn.Linear)
    return (2 * module.in_features - 1) * y.numel()


def _kernel(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the side of a pool's kernel; for an adaptive pool, the value of the published counter."""
    if not isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return -(-x.shape[-1] // y.shape[-1])
    side = module.kernel_size
    return side if isinstance(side, int) else side[0]


def _max_pool(module: nn.Module, x: Tensor, y: Tensor) -> float:
    return (_kernel(module, x, y) - 1) * y.numel()


def _average_pool(module: nn.Module, x: Tensor, y: Tensor) -> float:
    return _kernel(module, x, y) * y.numel()


def _mixed_pool(module: nn.Module, x: Tensor, y: Tensor) -> float:
    if x.shape[-1] < 4:  # the released heads do not pool such small maps
        return 0.0
    return _max_pool(module, x, y) + _average_pool(module, x, y)


# type -> operations for one sample, from input and output; other types cost nothing
OPERATIONS: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], float]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: lambda module, x, y: 2 * x.numel(),
    # a block's last ReLU is counted with the block, even if it is in the next stage
    BasicBlock: lambda module, x, y: y.numel(),
    BlockReLU: lambda module, x, y: 0.0,
    nn.ReLU: lambda module, x, y: x.numel(),
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveMaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _average_pool,
    MixedPool: _mixed_pool,
}


def module_operations(module: nn.Module, *arguments: Any) -> float:
    """Count the operations of one call of a module; arguments: tensors or states of a batch of one sample."""
    check_default_dtype()
    module = copy.deepcopy(module).cpu().eval()
    total = 0.0

    def count(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        kind = next((kind for kind in OPERATIONS if isinstance(part, kind)), None)
        total += OPERATIONS[kind](part, inputs[0], output) if kind else 0.0

    for part in module.modules():
        part.register_forward_hook(count)
    with torch.no_grad():
        module(*arguments)
    return total


def ensemble_operations(exit: int, num_classes: int) -> float:
    """Return the operations that the published counter adds for the ensemble of one exit (from 0)."""
    return float((exit + 1) * num_classes + exit * num_classes + num_classes)
