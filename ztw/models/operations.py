"""Count the multiply-accumulate operations (MACs) of a module and of a backbone for one sample, with ptflops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ztw.device import check_default_dtype
from ztw.models.backbone import Backbone

# The backend of ptflops that counts dispatched operations, so that it needs no table of module types: convolutions,
# matrix products, and a bias as one operation per output.
BACKEND = "aten"


def module_macs(module: nn.Module, *shapes: tuple[int, ...]) -> float:
    """Count the MACs of a module for one sample; shapes: shapes of its arguments, without the batch axis."""
    check_default_dtype()
    import ptflops  # imports torchvision, which takes seconds

    # ptflops counts no operations in inference mode
    with torch.inference_mode(False), _unfused_attention():
        inputs = [torch.zeros(1, *shape) for shape in shapes]
        module = copy.deepcopy(module).cpu().eval()  # ptflops adds methods to a module and changes its mode
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
    """Compute attention with matrix products, because ptflops cannot count fused kernels."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Positional(nn.Module):
    """Passes positional arguments to a module, because ptflops passes keyword arguments."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return self.module(*inputs)


# (module, *shapes of its arguments) -> operations for one sample
Counter = Callable[..., float]


def stage_costs(backbone: Backbone, count: Counter = module_macs) -> Tensor:
    """Count the operations of each of a backbone's B stages: float64 (B,), MACs by default."""
    shapes = [backbone.input_shape, *backbone.feature_shapes]
    return torch.tensor(
        [count(stage, shape) for stage, shape in zip(backbone.stages, shapes[:-1], strict=True)],
        dtype=torch.float64,
    )


def backbone_macs(backbone: Backbone, count: Counter = module_macs) -> float:
    """Count the operations of a backbone. Budgets and relative costs are shares of this number."""
    classifier = count(backbone.classifier, backbone.feature_shapes[-1])
    return float(stage_costs(backbone, count).sum()) + classifier
