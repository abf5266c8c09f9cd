"""Costs in multiply-accumulate operations (MACs) of one sample, counted by ptflops."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ztw.errors import ZtwError

if TYPE_CHECKING:
    from ztw.backbones import Backbone
    from ztw.network import EarlyExitNetwork

# Counts what is dispatched (convolutions and matrix products, a bias as one operation an output), so that
# it needs no table of module types.
BACKEND = "aten"


def module_macs(module: nn.Module, *shapes: tuple[int, ...]) -> float:
    """MACs of one call of `module` on one sample; shapes: of each argument, without the batch axis."""
    import ptflops  # imports torchvision: seconds that most jobs need not spend

    inputs = [torch.zeros(1, *shape) for shape in shapes]
    module = copy.deepcopy(module).cpu().eval()  # ptflops adds methods and changes the mode
    counted, _ = ptflops.get_model_complexity_info(
        _Positional(module),
        (1,),
        input_constructor=lambda _: {"inputs": inputs},
        backend=BACKEND,
        as_strings=False,
        print_per_layer_stat=False,
    )
    return float(counted or 0)


class _Positional(nn.Module):
    """ptflops passes keyword arguments; the modules here take positional ones."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Call the module on the list's tensors."""
        return self.module(*inputs)


def stage_macs(backbone: Backbone) -> Tensor:
    """MACs (B,) float64 of each stage of a backbone, the classifier not among them."""
    shapes = [backbone.input_shape, *backbone.feature_shapes]
    return torch.tensor(
        [module_macs(stage, shape) for stage, shape in zip(backbone.stages, shapes[:-1], strict=True)],
        dtype=torch.float64,
    )


def backbone_macs(backbone: Backbone) -> float:
    """MACs of the backbone alone: the base that relative costs and budgets refer to."""
    return float(stage_macs(backbone).sum()) + module_macs(backbone.classifier, backbone.feature_shapes[-1])


def macs(network: EarlyExitNetwork, input_size: tuple[int, int, int] | None = None) -> Tensor:
    """Cumulative MACs (K,) float64 of a sample that leaves at each exit.

    network: its cascade and, when it has one, its ensemble are included; input_size: (C, H, W), by
    default the backbone's; another one is refused with ZtwError because heads are built for one.
    """
    backbone = network.backbone
    if input_size is not None and tuple(input_size) != backbone.input_shape:
        raise ZtwError(f"input size {tuple(input_size)}: this network is built for {backbone.input_shape}")
    stages = stage_macs(backbone).cumsum(0)
    spent, costs = 0.0, []
    for exit, (block, head) in enumerate(zip(network.placement, network.heads, strict=True)):
        shapes = [backbone.feature_shapes[block]]
        if network.mode.cascade and exit:
            shapes.append((backbone.classes,))
        spent += module_macs(head, *shapes) + network.ensemble_macs(exit)
        costs.append(float(stages[block]) + spent)
    spent += module_macs(backbone.classifier, backbone.feature_shapes[-1])
    costs.append(float(stages[-1]) + spent + network.ensemble_macs(len(network.heads)))
    return torch.tensor(costs, dtype=torch.float64)
