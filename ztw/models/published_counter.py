"""The operation counter of the released code. Use it only to compare with published figures.

It multiplies the cost of a grouped convolution by the number of groups twice, so MobileNet appears eight times too
expensive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ztw.device import check_default_dtype
from ztw.models.cifar_resnet import BasicBlock, BlockReLU
from ztw.models.exported import ExportedPart, aten
from ztw.models.pooling import MixedPool


def _convolution(x: Tensor, y: Tensor, weight: Tensor, groups: int, bias: bool) -> float:
    # the weight is (outputs, channels of a group, height, width)
    products = 2 * weight[0].numel() - 1 + bias
    return y.numel() * products * groups  # the published double count


def _aten_convolution(y: Tensor, x: Tensor, weight: Tensor, bias: Any = None, *more: Any) -> float:
    return _convolution(x, y, weight, more[3] if len(more) > 3 else 1, bias is not None)


def _linear(x: Tensor, y: Tensor) -> float:
    return (2 * x.shape[-1] - 1) * y.numel()


def _side(x: Tensor, y: Tensor) -> int:
    """Return the side of an adaptive pool's kernel that the published counter assumes."""
    return -(-x.shape[-1] // y.shape[-1])


def _max_pool(y: Tensor, side: int) -> float:
    return (side - 1) * y.numel()


def _average_pool(y: Tensor, side: int) -> float:
    return side * y.numel()


def _mixed_pool(x: Tensor, y: Tensor) -> float:
    if x.shape[-1] < 4:  # the released heads do not pool so small a map
        return 0.0
    return _max_pool(y, _side(x, y)) + _average_pool(y, _side(x, y))


def _first(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]


# type -> operations for one image, computed from module, input and output; other types cost nothing
OPERATIONS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], float]] = {
    nn.Conv2d: lambda part, x, y: _convolution(x, y, part.weight, part.groups, part.bias is not None),
    nn.Linear: lambda part, x, y: _linear(x, y),
    nn.BatchNorm2d: lambda part, x, y: 2 * x.numel(),
    # a block's last ReLU is counted with the block, even if it is in the next stage
    BasicBlock: lambda part, x, y: y.numel(),
    BlockReLU: lambda part, x, y: 0.0,
    nn.ReLU: lambda part, x, y: x.numel(),
    nn.MaxPool2d: lambda part, x, y: _max_pool(y, _first(part.kernel_size)),
    nn.AdaptiveMaxPool2d: lambda part, x, y: _max_pool(y, _side(x, y)),
    nn.AvgPool2d: lambda part, x, y: _average_pool(y, _first(part.kernel_size)),
    nn.AdaptiveAvgPool2d: lambda part, x, y: _average_pool(y, _side(x, y)),
    MixedPool: lambda part, x, y: _mixed_pool(x, y),
}
# the same by the operations of an exported part, computed from arguments and output
ATEN: dict[Any, Callable[[Sequence[Any], Tensor], float]] = {
    aten.conv2d.default: lambda given, y: _aten_convolution(y, *given),
    aten.linear.default: lambda given, y: _linear(given[0], y),
    aten.batch_norm.default: lambda given, y: 2 * y.numel(),
    aten.relu.default: lambda given, y: y.numel(),
    aten.relu_.default: lambda given, y: y.numel(),
    aten.max_pool2d.default: lambda given, y: _max_pool(y, _first(given[1])),
    aten.avg_pool2d.default: lambda given, y: _average_pool(y, _first(given[1])),
    aten.adaptive_max_pool2d.default: lambda given, y: _max_pool(y[0], _side(given[0], y[0])),
    aten.adaptive_avg_pool2d.default: lambda given, y: _average_pool(y, _side(given[0], y)),
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
        if isinstance(module, ExportedPart):
            graph = _OfGraph(module.in_eval)
            graph.run(*module.arguments(*arguments))
            total += graph.total
    return total


class _OfGraph(fx.Interpreter):
    """Runs a graph and sums the operations of its nodes."""

    total = 0.0

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = super().call_function(target, args, kwargs)
        self.total += ATEN[target](args, output) if target in ATEN else 0.0
        return output


def ensemble_operations(exit: int, num_classes: int) -> float:
    """Return the operations that the published counter adds for the ensemble of one exit (from 0)."""
    return float((exit + 1) * num_classes + exit * num_classes + num_classes)
