"""Protect the inputs of modules: a module that works in place receives a copy."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

Shape = tuple[int, ...]  # without the batch axis
Module = TypeVar("Module", bound=nn.Module)


def copied(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook for a module that overwrites its input."""
    return (arguments[0].clone(), *arguments[1:])


def contiguous(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook for a module that cannot read channels_last, e.g. one that flattens by `view`."""
    return (arguments[0].contiguous(), *arguments[1:])


HOOKS = {"contiguous": contiguous, "copied": copied}


def examine(part: nn.Module, *shapes: Shape) -> tuple[Shape, list[str]]:
    """Find the shape of a module's output, and the HOOKS that the module needs.

    To detect in-place operations, the module is called in contiguous and channels_last memory, in training and eval
    mode. Its dropout layers are changed to not work in place.

    Args:
        part: the module.
        shapes: shapes of its arguments without the batch axis, the features first.

    Returns:
        The shape of the output without the batch axis, and names in HOOKS.
    """
    for module in part.modules():
        if isinstance(module, _DropoutNd):
            module.inplace = False
    like = next(part.parameters(), torch.empty(0))
    with torch.inference_mode(False), torch.no_grad():
        features, *rest = [_numbers(shape, like) for shape in shapes]
        needs = []
        with _modes_kept(part):
            part.eval()
            output, overwritten = _call(part, features, rest)
            if features.dim() == 4:
                try:
                    with redirect_stderr(io.StringIO()):  # torch.fx prints the place of an error
                        overwritten |= _call(part, features.to(memory_format=torch.channels_last), rest)[1]
                except RuntimeError:
                    needs.append("contiguous")
        overwritten = overwritten or _overwrites_in_training(part, features, rest)
        return tuple(output.shape[1:]), needs + (["copied"] if overwritten else [])


def give(part: nn.Module, needs: list[str]) -> None:
    """Register the hooks that a module needs, unless it has them."""
    for need in needs:
        if HOOKS[need] not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(HOOKS[need])
    keep_contiguous(part)


def to_channels_last(module: Module) -> Module:
    """Convert the weights with 4 axes to channels_last memory. `Module.to` raises an error for weights with 5 axes."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    return module._apply(convert)


def keep_contiguous(part: nn.Module) -> None:
    """Make weights contiguous in a module that cannot read channels_last. Convolutions would output it."""
    if contiguous in part._forward_pre_hooks.values():
        part.to(memory_format=torch.contiguous_format)


def _numbers(shape: Shape, like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape), dtype=like.dtype, device=like.device).view(1, *shape)


@contextmanager
def _modes_kept(part: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in part.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _call(part: Callable[..., Tensor], features: Tensor, rest: list[Tensor]) -> tuple[Tensor, bool]:
    """Return a module's output, and whether it has overwritten its features."""
    given = features.clone()
    before = given._version
    output = part(given, *rest)
    return output, given._version != before or not torch.equal(given, features)


def _overwrites_in_training(part: nn.Module, features: Tensor, rest: list[Tensor]) -> bool:
    """Return whether a module overwrites its features in training. Buffers and the random state stay unchanged."""
    buffers = {name: buffer.clone() for name, buffer in part.named_buffers()}
    devices = [features.device] if features.is_cuda else []
    with _modes_kept(part), torch.random.fork_rng(devices):
        for module in part.modules():
            module.training = not isinstance(module, _BatchNorm)  # BatchNorm cannot train on a single sample
        try:
            return _call(lambda *given: functional_call(part, buffers, given), features, rest)[1]
        except ValueError:  # some norms need more than one number
            return False
