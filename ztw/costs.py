"""Costs in multiply-accumulate operations (MACs) of one sample, counted by ptflops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ztw.errors import ZtwError
from ztw.published_counter import ensemble_paper_ops, module_paper_ops

if TYPE_CHECKING:
    from ztw.backbone import Backbone
    from ztw.network import EarlyExitNetwork

# Counts what is dispatched (convolutions and matrix products, a bias as one operation an output), so that
# it needs no table of module types.
BACKEND = "aten"


def module_macs(module: nn.Module, *shapes: tuple[int, ...]) -> float:
    """MACs of one call of `module` on one sample; shapes: of each argument, without the batch axis."""
    import ptflops  # imports torchvision: seconds that most jobs need not spend

    # ptflops sees no operation in inference mode
    with torch.inference_mode(False), _unfused_attention():
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


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Attention as matrix products: ptflops cannot see into its fused kernels."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Positional(nn.Module):
    """ptflops passes keyword arguments; the modules here take positional ones."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Call the module on the list's tensors."""
        return self.module(*inputs)


# Operations of one call of a module on one sample, given its arguments' shapes
Counter = Callable[..., float]


def stage_costs(backbone: Backbone, count: Counter = module_macs) -> Tensor:
    """Cost (B,) float64 of each stage of a backbone, the classifier not among them; MACs by default."""
    shapes = [backbone.input_shape, *backbone.feature_shapes]
    return torch.tensor(
        [count(stage, shape) for stage, shape in zip(backbone.stages, shapes[:-1], strict=True)],
        dtype=torch.float64,
    )


def backbone_macs(backbone: Backbone, count: Counter = module_macs) -> float:
    """MACs of the backbone alone: the base that relative costs and budgets refer to."""
    classifier = count(backbone.classifier, backbone.feature_shapes[-1])
    return float(stage_costs(backbone, count).sum()) + classifier


def backbone_paper_ops(backbone: Backbone) -> float:
    """Operations of the backbone alone by the published counter."""
    return backbone_macs(backbone, module_paper_ops)


def macs(network: EarlyExitNetwork, input_size: tuple[int, int, int] | None = None) -> Tensor:
    """Cumulative MACs (K,) float64 of a sample that leaves at each exit.

    network: its cascade and, when it has one, its ensemble are included; input_size: (C, H, W), by
    default the backbone's; another one is refused with ZtwError because heads are built for one.
    """
    ensemble = network.ensemble
    added = [0.0 if ensemble is None else ensemble.macs(exit) for exit in range(network.exits)]
    if network.mode.additive:  # one multiplication a class, at every exit that has a predecessor
        added = [value + network.backbone.classes * (exit > 0) for exit, value in enumerate(added)]
    return _cumulative(network, module_macs, added, input_size)


def paper_ops(network: EarlyExitNetwork, input_size: tuple[int, int, int] | None = None) -> Tensor:
    """The same by the published operation counter, trap included: to compare with published figures only."""
    ensemble, classes = network.ensemble, network.backbone.classes
    added = [
        ensemble_paper_ops(exit, classes) if ensemble is not None and ensemble.ensembled(exit) else 0.0
        for exit in range(network.exits)
    ]
    return _cumulative(network, module_paper_ops, added, input_size)


def _cumulative(
    network: EarlyExitNetwork, count: Counter, added: list[float], input_size: tuple[int, int, int] | None
) -> Tensor:
    """Cost (K,) of everything up to each exit; added: what its ensemble costs."""
    backbone = network.backbone
    if input_size is not None and tuple(input_size) != backbone.input_shape:
        raise ZtwError(f"input size {tuple(input_size)}: this network is built for {backbone.input_shape}")
    stages = stage_costs(backbone, count).cumsum(0)
    spent, costs = 0.0, []
    for exit, (block, head) in enumerate(zip(network.placement, network.heads, strict=True)):
        shapes = [backbone.feature_shapes[block]]
        if network.mode.cascade and exit:
            shapes.append((backbone.classes,))
        spent += count(head, *shapes) + added[exit]
        costs.append(float(stages[block]) + spent)
    spent += count(backbone.classifier, backbone.feature_shapes[-1]) + added[-1]
    costs.append(float(stages[-1]) + spent)
    return torch.tensor(costs, dtype=torch.float64)
