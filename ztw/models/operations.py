"""Count the multiply-accumulate operations (MACs) of a module and of a backbone for one sample, with ptflops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ztw.batch import mapped
from ztw.device import check_default_dtype
from ztw.errors import ZtwError
from ztw.models.backbone import Backbone, states_of

# The backend of ptflops that counts dispatched operations, so that it needs no table of module types: convolutions,
# matrix products, and a bias as one operation per output.
BACKEND = "aten"


def _baddbmm(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return int(inputs[1].numel() * inputs[2].shape[-1] + outputs[0].numel())


def _mv(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return int(inputs[0].numel())


# Products that the table of ptflops lacks: operation -> (arguments, outputs) -> MACs
PRODUCTS = {
    torch.ops.aten.baddbmm: _baddbmm,
    torch.ops.aten.mv: _mv,
    torch.ops.aten.addmv: lambda inputs, outputs: int(inputs[1].numel() + outputs[0].numel()),
    torch.ops.aten.dot: _mv,
}


def module_macs(module: nn.Module, *arguments: Any) -> float:
    """Count the MACs of one call of a module: convolutions, matrix products and biases.

    Attention and recurrent layers count as the matrix products that they consist of.

    Args:
        module: the module.
        arguments: tensors or states of a batch of one sample.

    Raises:
        ZtwError: if ptflops fails.
    """
    check_default_dtype()
    import ptflops  # imports torchvision, which takes seconds

    # ptflops counts no operations in inference mode
    with torch.inference_mode(False), unfused_layers():
        arguments = tuple(mapped(given, Tensor.clone) for given in arguments)
        module = copy.deepcopy(module).cpu().eval()  # ptflops adds methods to a module and changes its mode
        counted, _ = ptflops.get_model_complexity_info(
            _Positional(module),
            (1,),
            input_constructor=lambda _: {"arguments": arguments},
            backend=BACKEND,
            custom_modules_hooks=PRODUCTS,
            as_strings=False,
            print_per_layer_stat=False,
        )
    if counted is None:
        raise ZtwError(f"macs: {type(module).__name__}: ptflops cannot count its operations, see above")
    return float(counted)


@contextmanager
def unfused_layers() -> Iterator[None]:
    """Compute attention and LSTMs with matrix products, because ptflops cannot count fused kernels."""
    attention, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(attention)
        torch.backends.mkldnn.enabled = onednn


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
    """Count the MACs of the backbone alone, the base of relative costs and budgets; of a cascade, its last model."""
    states, needed = states_of(backbone), backbone.needed(len(backbone.stages) - 1)
    parts = [(backbone.stages[number], states[number]) for number in needed]
    return sum(count(part, state) for part, state in [*parts, (backbone.classifier, states[-1])])
