"""Modules that cannot be copied, cut, saved and exported, and weights that are computed from other weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
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


def computed_weights(models: Sequence[nn.Module]) -> dict[int, Tensor]:
    """Return the memo with which `copy.deepcopy` copies weights that a layer has computed in a forward with gradient.

    weight_norm, spectral_norm and pruning keep such weights as attributes, and torch refuses to copy them.
    """
    attributes = (value for model in models for part in model.modules() for value in vars(part).values())
    return {
        id(value): value.detach().clone()
        for value in attributes
        if isinstance(value, Tensor) and not value.is_leaf
    }


def plain(model: nn.Module) -> nn.Module:
    """Replace compiled modules by their originals, and computed weights (weight_norm, pruning, ...) by plain ones."""
    for place, part in list(model.named_modules()):
        original = getattr(part, "_orig_mod", None)
        if isinstance(original, nn.Module) and place:
            model.set_submodule(place, original)
    for part in model.modules():
        if parametrize.is_parametrized(part):
            _remove_parametrizations(part)
        for hook in list(part._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(part, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(part, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(part, hook._tensor_name)
    return model


@torch.no_grad()
def _remove_parametrizations(part: nn.Module) -> None:
    """Replace the parametrized tensors of a module by plain ones.

    torch's `remove_parametrizations` changes the class of the module, which the copy shares with the user's model.
    """
    held: Any = part.parametrizations
    held.eval()  # in training mode, spectral_norm changes at every call
    found = {name: (getattr(part, name).clone(), list(held[name].parameters(recurse=False))) for name in held}
    kind = parametrize.type_before_parametrizations(part)
    del part.parametrizations
    part.__class__ = kind
    for name, (value, originals) in found.items():
        if originals:
            trains = any(original.requires_grad for original in originals)
            part.register_parameter(name, nn.Parameter(value, trains))
        else:
            part.register_buffer(name, value)
