"""Count the multiply-accumulate operations (MACs) of a module and of a backbone for one sample, with ptflops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ztw.batch import mapped
from ztw.device import check_default_dtype
from ztw.models.backbone import Backbone, states_of

# The backend of ptflops that counts dispatched operations, so that it needs no table of module types: convolutions,
# matrix products, and a bias as one operation per output.
BACKEND = "aten"


def module_macs(module: nn.Module, *arguments: Any) -> float:
    """Count the MACs of one call of a module; arguments: tensors or states of a batch of one sample."""
    check_default_dtype()
    import ptflops  # imports torchvision, which takes seconds

    # ptflops counts no operations in inference mode
    with torch.inference_mode(False), _unfused_attention():
        arguments = tuple(mapped(given, Tensor.clone) for given in arguments)
        module = copy.deepcopy(module).cpu().eval()  # ptflops adds methods to a module and changes its mode
        counted, _ = ptflops.get_model_complexity_info(
            _Positional(module),
            (1,),
            input_constructor=lambda _: {"arguments": arguments},
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

    def forward(self, arguments: tuple[Any, ...]) -> Any:
        """Call the module."""
        return self.module(*arguments)


# (module, *its arguments for one sample) -> operations of one call
Counter = Callable[..., float]


def stage_costs(backbone: Backbone, count: Counter = module_macs) -> Tensor:
    """Count the operations (B,) float64 of each stage of a backbone, without its classifier; MACs by default."""
    pairs = zip(backbone.stages, states_of(backbone)[:-1], strict=True)
    return torch.tensor([count(stage, state) for stage, state in pairs], dtype=torch.float64)


def backbone_macs(backbone: Backbone, count: Counter = module_macs) -> float:
    """Count the MACs of the backbone alone, the base of relative costs and budgets."""
    parts = zip([*backbone.stages, backbone.classifier], states_of(backbone), strict=True)
    return sum(count(part, state) for part, state in parts)
