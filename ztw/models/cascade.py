"""A cascade of models: independent networks, of which each is an exit, from the cheapest to the most expensive."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ztw.batch import Batch, Input, InputSpec, tensors_of
from ztw.errors import ZtwError
from ztw.models.backbone import Backbone, as_spec
from ztw.models.building import build_network
from ztw.models.cut import as_backbone
from ztw.models.exporting import call, first_tensor
from ztw.models.heads import LogitsHead
from ztw.models.network import EarlyExitNetwork
from ztw.models.operations import backbone_macs

CARRIED = (
    "cascade.{}"  # an input in the state, for the next models; neither a batch nor a head has such a name
)


MEMBER = "backbone.stages.{}.backbone."  # prefix of a member's weights in a network, from 0


class Member(nn.Module):
    """A stage of a cascade: one model. It returns the model's logits, and the inputs for the next models.

    Args:
        backbone: the model.
        inputs: what the cascade takes.
        last: whether no model follows.
    """

    def __init__(self, backbone: Backbone, inputs: InputSpec, last: bool) -> None:
        super().__init__()
        self.backbone, self.inputs, self.last = backbone, inputs, last
        self.carried = [CARRIED.format(number) for number in range(len(inputs.inputs))]

    def forward(self, state: Any) -> Any:
        """Return {"features": logits (N, classes), and the inputs}, or the logits of the last model.

        Args:
            state: what the previous model's stage returned, or a batch.
        """
        if isinstance(state, dict) and self.carried[0] in state:
            given = [state[name] for name in self.carried]
        elif isinstance(state, dict):
            given = [state[name] for name in self.inputs.names]
        else:
            given = list(tensors_of(state))
        logits = self.backbone(self.inputs.build(given))
        return logits if self.last else {"features": logits, **dict(zip(self.carried, given, strict=True))}


class ModelCascade(Backbone):
    """The models of a cascade as a Backbone: each stage is one model, whose features are its logits.

    The backbone alone, the base of budgets, is the last model.

    Args:
        members: the models, from the cheapest to the most expensive.
    """

    def __init__(self, members: Sequence[Backbone]) -> None:
        inputs = common_inputs([member.inputs for member in members])
        stages = [Member(member, inputs, number == len(members)) for number, member in enumerate(members, 1)]
        super().__init__("+".join(member.arch for member in members), stages, LogitsHead(), inputs)
        if all(member.origin and "build_backbone" in member.origin for member in members):
            self.origin = self.described([member.origin or {} for member in members])

    def described(self, how: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return how `load` makes the cascade; how: for each model, how to make it."""
        about = [{"arch": member.arch, "inputs": member.inputs.to_json()} for member in self.members]
        return {"cascade": [{**one, "backbone": of} for one, of in zip(about, how, strict=True)]}

    @property
    def members(self) -> list[Backbone]:
        """The models."""
        return [stage.backbone for stage in self.stages if isinstance(stage, Member)]

    @property
    def working_sizes(self) -> list[int]:
        """The numbers of the largest stage of each model, or of the inputs."""
        given = sum(math.prod(side or 1 for side in item.shape) for item in self.inputs.inputs)
        return [max(given, *member.working_sizes) for member in self.members]

    def needed(self, block: int) -> range:
        """Return the model itself, because it does not need the others."""
        return range(block, block + 1)


class Whole(nn.Module):
    """A model that cannot be cut, as one stage: from a batch to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits (N, classes)."""
        return first_tensor(call(self.model, batch))


def model_cascade(
    models: Sequence[nn.Module], input_shape: Sequence[int] | None = None, *, example: Any = None
) -> EarlyExitNetwork:
    """Combine trained classifiers into a cascade: each is an exit, and only samples that stay reach the next one.

    The result is an EarlyExitNetwork without training of its own: choose a threshold, export and save it like any
    other. Its budgets are shares of the last model's cost. (Bolukbasi et al. 2017, Wang et al. 2022.)

    Args:
        models: two or more classifiers of the same inputs and classes, from the cheapest to the most expensive:
            modules, Backbones, or EarlyExitNetworks without ICs. They are copied.
        input_shape: shape of the inputs without the batch axis, e.g. (channels, height, width) of images.
        example: for other inputs, an example batch, see `as_backbone`. Neither is needed if one model is a Backbone.

    Returns:
        The network, in eval mode, on the device of the first model.

    Raises:
        ZtwError: for fewer than two models; for models of different inputs or classes, in another order, or with early
            exits; and for a model that `as_backbone` cannot take.

    Example:
        >>> import torch, ztw
        >>> small, large = ztw.build_backbone("resnet8"), ztw.build_backbone("resnet14")  # trained classifiers
        >>> network = ztw.model_cascade([small, large])
        >>> network.infer(torch.randn(4, 3, 32, 32), "max_softmax 0.9").logits.shape
        torch.Size([4, 10])
        >>> bool(ztw.macs(network)[1] > ztw.macs(network.backbone) == ztw.macs(large))
        True
    """
    if not isinstance(models, Sequence | nn.ModuleList) or len(models) < 2:
        count = len(models) if isinstance(models, Sequence | nn.ModuleList) else type(models).__name__
        raise ZtwError(f"model_cascade: {count}, must be a list of at least two models")
    known = [_known(model, number) for number, model in enumerate(models, 1)]
    inputs = _inputs(known, input_shape, example)
    members = [
        _converted(model, inputs) if backbone is None else copy.deepcopy(backbone)
        for model, backbone in zip(models, known, strict=True)
    ]
    classes = [member.num_classes for member in members]
    if len(set(classes)) > 1:
        raise ZtwError(f"model_cascade: models of {_listed(classes)} classes, must be the same number")
    like = next(members[0].parameters(), torch.empty(0))
    _check_order(members)
    backbone = ModelCascade([member.to(like.device) for member in members])
    before_last = list(range(len(members) - 1))
    return build_network(backbone, head="identity", placement=before_last, progress=False).eval()


def _known(model: Any, number: int) -> Backbone | None:
    """Return the Backbone that a model is or has; None for another module."""
    if isinstance(model, EarlyExitNetwork):
        if model.heads:
            raise ZtwError(
                f"model_cascade: model {number} has early exits; give its .backbone, or a static network"
            )
        return model.backbone
    if not isinstance(model, nn.Module):
        raise ZtwError(
            f"model_cascade: model {number} is a {type(model).__name__}, must be a torch.nn.Module"
        )
    return model if isinstance(model, Backbone) else None


def _inputs(known: Sequence[Backbone | None], input_shape: Any, example: Any) -> Any:
    """Return the example batch or the shape for the models that are not Backbones."""
    if input_shape is not None and example is not None:
        raise ZtwError("model_cascade: give either input_shape= or example=, not both")
    given = example if input_shape is None else tuple(input_shape)
    described = [] if given is None else [as_spec(given)]
    described += [backbone.inputs for backbone in known if backbone is not None]
    if not described:
        raise ZtwError("model_cascade: give input_shape=, e.g. (3, 32, 32), or example=, a batch")
    common_inputs(described)
    return described[0].sample(2) if given is None else given


def _converted(model: nn.Module, given: Any) -> Backbone:
    """Return a module as a Backbone, in stages if it can be cut, else in one."""
    key = "input_shape" if isinstance(given, tuple) and all(isinstance(x, int) for x in given) else "example"
    inputs: dict[str, Any] = {key: given}
    try:
        return as_backbone(model, **inputs)
    except ZtwError:
        return as_backbone(model, **inputs, stages=[Whole(model)], classifier=LogitsHead())


def common_inputs(specs: Sequence[InputSpec]) -> InputSpec:
    """Return the inputs that all models take; raise ZtwError if these differ.

    An axis has any size only if all models take any.
    """
    first, *others = specs
    items = list(first.inputs)
    for number, other in enumerate(others, 2):
        same_form = other.form == first.form and len(other.inputs) == len(items)
        if not same_form or (first.form == "dict" and set(other.names) != set(first.names)):
            raise ZtwError(
                f"model_cascade: model {number} takes {_described(other)}, model 1 takes {_described(first)}; all must"
                " take the same inputs"
            )
        by_name = dict(zip(other.names, other.inputs, strict=True))
        matched = [by_name[item.name] for item in items] if first.form == "dict" else list(other.inputs)
        items = [_common(one, two, number) for one, two in zip(items, matched, strict=True)]
    return replace(first, inputs=tuple(items))


def _common(one: Input, two: Input, number: int) -> Input:
    """Return the sizes of a tensor that both inputs accept."""
    fits = len(one.shape) == len(two.shape) and one.dtype == two.dtype
    sides: list[int | None] = []
    limits: list[tuple[int, int | None] | None] = []
    for axis in range(len(one.shape) if fits else 0):
        known = [item.shape[axis] for item in (one, two)]
        ranges = [item.limits[axis] for item in (one, two) if item.limits and item.limits[axis]]
        sides.append(next((side for side in known if side is not None), None))
        limits.append(_narrowest([limit for limit in ranges if limit is not None]))
        fits &= None in known or known[0] == known[1]
    wanted = tuple(sides)
    if not fits or not all(
        item.fits([side or 1 for side in wanted]) or None in wanted for item in (one, two)
    ):
        raise ZtwError(
            f"model_cascade: {one.name} of model {number} is {two.dtype} {_shape(two)}, of the models before it"
            f" {one.dtype} {_shape(one)}; all must take the same inputs"
        )
    some = any(limit is not None and side is None for limit, side in zip(limits, wanted, strict=True))
    return replace(one, shape=wanted, limits=tuple(limits) if some else ())


def _narrowest(ranges: Sequence[tuple[int, int | None]]) -> tuple[int, int | None] | None:
    if not ranges:
        return None
    largest = [most for _, most in ranges if most is not None]
    return max(least for least, _ in ranges), min(largest, default=None)


def _shape(item: Input) -> str:
    return f"({', '.join(item.side(axis) for axis in range(len(item.shape)))})"


def _described(inputs: InputSpec) -> str:
    names = f" of {', '.join(inputs.names)}" if inputs.form == "dict" else f" of {len(inputs.inputs)} tensors"
    return f"a {inputs.form}{'' if inputs.form == 'tensor' else names}"


def _check_order(members: Sequence[Backbone]) -> None:
    costs = [backbone_macs(member) for member in members]
    if any(later < earlier for earlier, later in pairwise(costs)):
        raise ZtwError(
            f"model_cascade: the models cost {_listed(f'{cost:.3g}' for cost in costs)} MACs, must be in order from the"
            " cheapest to the most expensive"
        )


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))
