"""Compare a cut model with the original: logits, other sizes, and a step of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ztw.batch import InputSpec, mapped, tensors_of
from ztw.errors import ZtwError
from ztw.models.backbone import Backbone
from ztw.models.exporting import call, first_tensor

BY_HAND = "cut it by hand with stages=[...] and classifier=..."


@torch.no_grad()
def compare(backbone: Backbone, batch: Any, expected: Tensor) -> None:
    """Raise ZtwError unless the backbone computes the model's logits, and no stage changes what an exit reads."""
    states = list(backbone.eval().features(batch))
    before = [mapped(state, Tensor.clone) for state in states]
    found = backbone.classifier(states[-1])
    if found.shape != expected.shape:
        raise ZtwError(
            f"{backbone.arch}: the cut model returns shape {tuple(found.shape)}, the original {tuple(expected.shape)}"
        )
    scale = max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    if not difference <= 1e-3 * scale:
        raise ZtwError(
            f"{backbone.arch}: the logits of the cut model differ from the original's by up to {difference:.3g},"
            f" because it draws random numbers or remembers earlier calls; {BY_HAND}"
        )
    pairs = zip(map(tensors_of, before), map(tensors_of, states), strict=True)
    if not all(torch.equal(one, two) for old, new in pairs for one, two in zip(old, new, strict=True)):
        raise ZtwError(f"{backbone.arch}: a stage changes the features of the stage before it; {BY_HAND}")


@torch.no_grad()
def compare_other_sizes(backbone: Backbone, model: nn.Module) -> None:
    """Raise ZtwError unless the backbone computes the model's logits for one sample, and for other lengths."""
    for batch in _other_sizes(backbone.inputs, next(model.parameters(), torch.empty(0))):
        try:
            expected = first_tensor(call(model.eval(), backbone.inputs.check(batch)))
        except Exception:  # the model does not take such a batch either
            continue
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(batch))
        try:
            found = backbone.eval()(batch)
            alike = found.shape == expected.shape and torch.allclose(found, expected, 1e-3, 1e-3)
        except RuntimeError:
            alike = False
        if not alike:
            raise ZtwError(
                f"{backbone.arch}: the logits of the cut model differ from the original's for inputs of {shapes},"
                f" because its forward decides by a size; {BY_HAND}"
            )


def _other_sizes(inputs: InputSpec, like: Tensor) -> Iterator[Any]:
    """Yield a batch of one sample, and if a length may be any, a shorter and a longer batch."""
    yield inputs.sample(1, like)
    free = [len(item.shape) > 0 and item.shape[0] is None for item in inputs.inputs]
    if any(free):
        whole = tensors_of(inputs.sample(3, like))
        pairs = list(zip(whole, free, strict=True))
        yield inputs.build([x[:, : max(1, x.shape[1] // 2)] if any_size else x for x, any_size in pairs])
        yield inputs.build([torch.cat([x, x[:, :1]], 1) if any_size else x for x, any_size in pairs])


def trains_alike(backbone: Backbone, model: nn.Module, batch: Any) -> bool:
    """Return whether the backbone computes the model's logits, gradients and buffers in training mode, too."""
    if any(part.in_training is None for part in (*backbone.stages, backbone.classifier)):
        return False
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def step(trained: nn.Module) -> list[Tensor]:
        torch.manual_seed(0)
        with torch.enable_grad():
            logits = first_tensor(
                call(trained.train(), batch) if trained is model else trained.train()(batch)
            )
            factors = torch.linspace(-1, 1, logits.numel(), device=logits.device).view(logits.shape)
            loss = (logits * factors).sum()
            grads = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else ()
        found = [logits.detach(), *(torch.zeros(()) if grad is None else grad for grad in grads)]
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                found.append(buffer.double().clone())
                buffer.copy_(buffers[name])
        return found

    try:
        expected = step(model)
    except Exception:  # the model cannot be trained, at least on such a batch: nothing to compare with
        return True
    try:
        return all(_alike(one, other) for one, other in zip(step(backbone), expected, strict=True))
    except RuntimeError:
        return False


def _alike(one: Tensor, other: Tensor) -> bool:
    scale = max(1e-3, float(other.abs().max())) if other.numel() else 1.0
    return bool(((one - other).abs() <= 1e-2 * scale).all())
