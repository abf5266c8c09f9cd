"""Checks for modules that cannot be copied, cut, saved and exported."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ztw.errors import ZtwError

# Hook of an older reparametrization -> call that removes it
REMOVED_BY: dict[type, str] = {
    WeightNorm: "torch.nn.utils.remove_weight_norm(module)",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm(module)",
    BasePruningMethod: "torch.nn.utils.prune.remove(module, 'weight')",
}


def check_supported(model: nn.Module, name: str) -> None:
    """Raise ZtwError if a model (`name`) holds a module that cannot be copied or traced. It says what to do."""
    for place, part in model.named_modules():
        for problem in _problems(part):
            raise ZtwError(f"{name}{f': {place}' if place else ''}: {problem}")


def _problems(part: nn.Module) -> Iterator[str]:
    if isinstance(part, torch.jit.ScriptModule):
        yield "is a TorchScript module, which cannot be cut; pass the original module"
    elif "_orig_mod" in part._modules:
        yield "is compiled by torch.compile, which cannot be cut; pass its _orig_mod"
    elif type(part).__module__.startswith(("torch.ao.nn.", "torch.nn.quantized.")):
        yield "is quantised, which cannot be cut; pass the float model"
    elif parametrize.is_parametrized(part):
        names = ", ".join(getattr(part, "parametrizations", {}))
        yield (
            f"{names} is parametrized (weight_norm, spectral_norm, orthogonal, ...), which cannot be cut; call"
            " torch.nn.utils.parametrize.remove_parametrizations(module, name) first"
        )
    for hook in part._forward_pre_hooks.values():
        for kind, remedy in REMOVED_BY.items():
            if isinstance(hook, kind):
                yield f"has {kind.__name__.removeprefix('Base')} on it, which cannot be cut; call {remedy} first"
    if any(tensor.is_meta for tensor in part.parameters(recurse=False)):
        yield "has weights on the device meta, which have no values; load the weights first"
