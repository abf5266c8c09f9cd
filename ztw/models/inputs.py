"""What a part of a network may do to its input: nothing that another part, or its caller, could see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

Shape = tuple[int, ...]  # without the batch axis


def copied(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook before `forward`: for a part that overwrites its input."""
    return (arguments[0].clone(), *arguments[1:])


def contiguous(part: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook before `forward`: for a part that cannot read channels_last, e.g. one that flattens by `view`."""
    return (arguments[0].contiguous(), *arguments[1:])


HOOKS = {"contiguous": contiguous, "copied": copied}


def examine(part: nn.Module, *shapes: Shape) -> tuple[Shape, list[str]]:
    """The shape of a part's output, and which HOOKS it needs, for arguments of these shapes, the features first.

    Found out by calling it on zeros, in both memory formats, so that any in-place operation counts, whatever
    module or function it is in. Dropout that works in place, which it does in training only, is changed.
    """
    for module in part.modules():
        if isinstance(module, _DropoutNd):
            module.inplace = False
    like = next(part.parameters(), torch.empty(0))
    with torch.inference_mode(False), torch.no_grad(), _evaluating(part):
        features, *rest = [like.new_zeros(1, *shape) for shape in shapes]
        output, overwritten = _call(part, features, rest)
        needs = []
        if features.dim() == 4:
            try:
                overwritten |= _call(part, features.to(memory_format=torch.channels_last), rest)[1]
            except RuntimeError:
                needs.append("contiguous")
        return tuple(output.shape[1:]), needs + (["copied"] if overwritten else [])


def give(part: nn.Module, needs: list[str]) -> None:
    """Register the hooks a part needs, unless it has them."""
    for need in needs:
        if HOOKS[need] not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(HOOKS[need])
    keep_contiguous(part)


def keep_contiguous(part: nn.Module) -> None:
    """Put the weights of a part that cannot read channels_last back: its convolutions would give that."""
    if contiguous in part._forward_pre_hooks.values():
        part.to(memory_format=torch.contiguous_format)


@contextmanager
def _evaluating(part: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in part.modules()}
    part.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _call(part: nn.Module, features: Tensor, rest: list[Tensor]) -> tuple[Tensor, bool]:
    """A part's output, and whether it has overwritten its features."""
    before = features._version
    output = part(features, *rest)
    return output, features._version != before
