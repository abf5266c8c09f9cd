"""Multiply-accumulate operations (MACs) of a module and of a backbone for one sample, counted by ptflops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ztw.device import check_default_dtype
from ztw.models.backbone import Backbone

# Counts what is dispatched (convolutions and matrix products, a bias as one operation an output), so that
# it needs no table of module types.
BACKEND = "aten"


def module_macs(module: nn.Module, *shapes: tuple[int, ...]) -> float:
    """MACs of one call of `module` on one sample; shapes: of each argument, without the batch axis."""
    check_default_dtype()
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
