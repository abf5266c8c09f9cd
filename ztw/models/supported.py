"""Modules that cannot be copied, cut, saved and exported, and weights that are computed from other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ztw.errors import ZtwError


def check_supported(model: nn.Module, name: str) -> None:
    """Raise ZtwError, with a remedy, if a model (`name`) holds a module that cannot be copied or exported."""
    for place, part in model.named_modules():
        for problem in _problems(part):
            raise ZtwError(f"{name}{f': {place}' if place else ''}: {problem}")


def _problems(part: nn.Module) -> Iterator[str]:
    """Yield the problems of one module, each with a remedy."""
    if isinstance(part, torch.jit.ScriptModule):
        yield "is a TorchScript module, which cannot be cut; pass the original module"
    elif type(part).__module__.startswith(("torch.ao.nn.", "torch.nn.quantized.")):
        yield "is quantised, which cannot be cut; pass the float model"
    if any(tensor.is_meta for tensor in part.parameters(recurse=False)):
        yield "has weights on the device meta, which have no values; load the weights first"


def plain(model: nn.Module) -> nn.Module:
    """Replace compiled modules by their originals, and computed weights (weight_norm, pruning, ...) by plain ones."""
    for place, part in list(model.named_modules()):
        original = getattr(part, "_orig_mod", None)
        if isinstance(original, nn.Module) and place:
            model.set_submodule(place, original)
    for part in list(model.modules()):
        if parametrize.is_parametrized(part):
            _remove_parametrizations(part)
        for hook in list(part._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                _replace(part, hook.name, remove_weight_norm)
            elif isinstance(hook, SpectralNorm):
                _replace(part, hook.name, remove_spectral_norm)
            elif isinstance(hook, prune.BasePruningMethod):
                _replace(part, hook._tensor_name, prune.remove)
    return model


def _remove_parametrizations(part: nn.Module) -> None:
    """Make parametrized weights plain. PyTorch's function would change the class, which the original model has, too."""
    found: Any = part.parametrizations
    weights = {name: getattr(part, name).detach().clone() for name in found}
    trains = {name: [weight.requires_grad for weight in found[name].parameters()] for name in found}
    del part.parametrizations
    part.__class__ = type(part).__mro__[1]
    for name, weight in weights.items():
        if trains[name]:
            part.register_parameter(name, nn.Parameter(weight, requires_grad=any(trains[name])))
        else:
            part.register_buffer(name, weight)


def _replace(part: nn.Module, name: str, remove: Callable[[nn.Module, str], Any]) -> None:
    """Make a computed weight plain; it trains if what it was computed from does."""
    trains = any(
        weight.requires_grad
        for key, weight in part.named_parameters(recurse=False)
        if key.startswith(f"{name}_")
    )
    remove(part, name)
    part.get_parameter(name).requires_grad_(trains)
