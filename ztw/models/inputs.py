"""Protect the inputs of modules: a module that works in place receives a copy."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ztw.batch import mapped, tensors_of
from ztw.errors import ZtwError

Shape = tuple[int, ...]  # without the batch axis
Module = TypeVar("Module", bound=nn.Module)


def copied(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook for a module that overwrites its input."""
    return (mapped(arguments[0], Tensor.clone), *arguments[1:])


def contiguous(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook for a module that cannot read channels_last, e.g. one that flattens by `view`."""
    return (mapped(arguments[0], Tensor.contiguous), *arguments[1:])


HOOKS = {"contiguous": contiguous, "copied": copied}


def examine(part: nn.Module, state: Any, *rest: Tensor) -> tuple[Any, list[str]]:
    """Find what a module returns, and the HOOKS that it needs.

    The module is called in both memory formats and in training mode, to detect any in-place operation. Dropout is set
    to not work in place.

    Args:
        part: the module.
        state: its first argument, a batch of one sample.
        rest: its further arguments.

    Returns:
        What the module returns, and names in HOOKS.
    """
    for module in part.modules():
        if isinstance(module, _DropoutNd):
            module.inplace = False
    with torch.inference_mode(False), torch.no_grad():
        needs = []
        with modes_kept(part):
            part.eval()
            output, overwritten = _call(part, state, rest)
            if any(tensor.dim() == 4 for tensor in tensors_of(state)):
                try:  # torch.fx prints the place of an error
                    with redirect_stderr(io.StringIO()):
                        overwritten |= _call(part, mapped(state, _channels_last), rest)[1]
                except RuntimeError:
                    needs.append("contiguous")
        overwritten = overwritten or _overwrites_in_training(part, state, rest)
        return output, needs + (["copied"] if overwritten else [])


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def needs_of(part: nn.Module) -> list[str]:
    """Return the names in HOOKS of the hooks that a module has."""
    return [name for name, hook in HOOKS.items() if hook in part._forward_pre_hooks.values()]


def give(part: nn.Module, needs: list[str]) -> None:
    """Register the hooks that a module needs, unless it has them."""
    for need in needs:
        if HOOKS[need] not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(HOOKS[need])
    keep_contiguous(part)


def to_channels_last(module: Module) -> Module:
    """Convert the weights of a module to channels_last memory if they have 4 axes. `Module.to` would reject 5 axes."""
    return module._apply(_channels_last)


def keep_contiguous(part: nn.Module) -> None:
    """Make weights contiguous in a module that cannot read channels_last. Convolutions would output it."""
    if contiguous in part._forward_pre_hooks.values():
        part.to(memory_format=torch.contiguous_format)


@contextmanager
def modes_kept(part: nn.Module) -> Iterator[None]:
    """Restore the mode of each module afterwards."""
    modes = {module: module.training for module in part.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _call(part: Callable[..., Any], state: Any, rest: Sequence[Tensor]) -> tuple[Any, bool]:
    """Return a module's output, and whether it has overwritten its first argument, noticed by autograd or not."""
    given = mapped(state, Tensor.clone)
    before = [tensor._version for tensor in tensors_of(given)]
    output = part(given, *rest)
    pairs = zip(tensors_of(given), tensors_of(state), before, strict=True)
    return output, any(new._version != version or not torch.equal(new, old) for new, old, version in pairs)


def _overwrites_in_training(part: nn.Module, state: Any, rest: Sequence[Tensor]) -> bool:
    """Return whether a module overwrites its features in training; its buffers and the random state stay unchanged."""
    buffers = {name: buffer.clone() for name, buffer in part.named_buffers()}
    device = tensors_of(state)[0].device
    with modes_kept(part), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for module in part.modules():
            module.training = not isinstance(module, _BatchNorm)  # BatchNorm cannot train on a single sample
        try:
            return _call(lambda *given: functional_call(part, buffers, given), state, rest)[1]
        except (ValueError, ZtwError):  # some norms need more than one number
            return False
