"""The base of every backbone: a list of stages, after which exits may be placed, and a classifier."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from ztw.batch import Batch, InputSpec, mapped
from ztw.device import check_default_dtype
from ztw.errors import unknown
from ztw.models.inputs import Shape, examine, give, needs_of
from ztw.models.supported import check_supported


@dataclass(frozen=True)
class BackboneOptions:
    """Options of a backbone. Not every architecture has all of them, see `OPTION_OWNERS`.

    Args:
        shortcut: of CIFAR ResNets (He et al. 2016). "conv" = option B, a 1x1 convolution; "pad" = option A, without
            parameters.
        ic_features: where a stage of a CIFAR ResNet ends: "before_relu", at the block's sum (released code), or
            "after_relu".
        last_norm_momentum: momentum of the last BatchNorm of the Wide ResNet. The released code has 0.9.
        init: initial weights, "torch" (PyTorch's) or "released" (see `ztw.models.initialisation`).
        input_size: side in pixels to which the network itself resizes its images first (bilinear); None = it does not.
    """

    shortcut: str = "conv"
    ic_features: str = "before_relu"
    last_norm_momentum: float = 0.1
    init: str = "torch"
    input_size: int | None = None

    @classmethod
    def of(cls, given: dict[str, Any]) -> BackboneOptions:
        """Create the options from a mapping; raise ZtwError for an unknown name."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("backbone option", name, known)
        return cls(**given)


class Backbone(nn.Module):
    """A network cut into stages. An exit can be placed after each stage.

    A stage takes what the previous stage returned, the first one the batch. It returns its features, a tensor (N, ...),
    or a dict of tensors (N, ...) with "features", which the exits read, and whatever later stages need. An
    "attention_mask" (N, T) in the dict tells the exits which tokens of features (N, T, D) are padding.

    Stages and classifier may work in place, or flatten by `view`. Such a part receives a copy of its input, or a
    contiguous one, so that no other part is affected.

    Args:
        arch: name of the architecture.
        stages: modules applied in order, one per block; the first includes the stem.
        classifier: module from what the last stage returned to logits (N, classes).
        inputs: shape of the inputs without the batch axis, e.g. (channels, height, width); or an example batch, a
            tensor or a tuple or dict of tensors.

    Attributes:
        inputs: the InputSpec of what the backbone takes.
        input_shape: (channels, height, width) of a network for images, else None.
        feature_shapes: shape of the features of each stage, without the batch axis.
        num_classes: number of classes.
        channels_first: whether the features of a stage are a signal (N, C, L), not tokens (N, T, D).
        origin: the call that built the backbone, {"build_backbone": its arguments} or {"as_backbone": ...}, else None.

    Raises:
        ZtwError: for a module that cannot be copied or traced, such as a TorchScript module.

    Example:
        >>> import torch, ztw
        >>> stages = [torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)]
        >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 28 * 28, 10))
        >>> ztw.Backbone("two", stages, classifier, (3, 32, 32)).feature_shapes
        [(8, 30, 30), (8, 28, 28)]
    """

    origin: dict[str, dict[str, Any]] | None = None

    def __init__(self, arch: str, stages: Sequence[nn.Module], classifier: nn.Module, inputs: Any) -> None:
        check_default_dtype()
        super().__init__()
        self.arch = arch
        self.inputs = as_spec(inputs)
        self.stages = nn.ModuleList(stages)
        self.classifier = classifier
        check_supported(self, arch)
        # shapes are measured, so that a new backbone needs no formula for them
        state, self.needs = first_state(self), dict[str, list[str]]()
        shapes, self.returns_dicts = list[Shape](), False
        for name, part in self._parts():
            hidden = needs_of(part)  # of a shared module, whose hooks hide what it needs
            state, found = examine(part, state)
            self.needs[name] = list(dict.fromkeys([*hidden, *found]))
            shapes.append(tuple(features_of(state).shape[1:]))
            self.returns_dicts |= isinstance(state, dict)
        self.feature_shapes, self.num_classes = shapes[:-1], shapes[-1][0]
        self.channels_first: tuple[bool, ...] = (False,) * len(stages)
        self.give_needs()
        self.train()

    @property
    def input_shape(self) -> Any:
        """(channels, height, width) of a network for images, else None."""
        return self.inputs.image_shape

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        yield from ((f"stages.{number}", stage) for number, stage in enumerate(self.stages))
        yield "classifier", self.classifier

    def give_needs(self) -> None:
        """Register the hooks that copy inputs or make them contiguous. Call this after replacing a stage."""
        for name, part in self._parts():
            give(part, self.needs[name])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.give_needs()  # torch.fx copies modules without their hooks

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.give_needs()  # the memory format may have changed
        return self

    @property
    def working_sizes(self) -> list[int]:
        """Numbers that each stage returns for a sample: they limit how many samples `infer` takes together."""
        return [math.prod(shape) for shape in self.feature_shapes]

    def needed(self, block: int) -> range:
        """Return the stages to run, from a batch, for the features of one stage alone (from 0)."""
        return range(block + 1)

    def stages_to(self, block: int) -> list[nn.Module]:
        """Return the modules to call, from a batch, for the features of one stage alone (from 0)."""
        return [self.stages[number] for number in self.needed(block)]

    def features(self, batch: Batch) -> Iterator[Any]:
        """Yield what every stage returns in turn, for a batch, e.g. images (N, C, H, W)."""
        state: Any = batch
        for stage in self.stages:
            state = stage(state)
            yield state

    def forward(self, batch: Batch) -> Tensor:
        """Compute logits (N, classes) for a batch, e.g. images (N, C, H, W)."""
        state: Any = batch
        for stage in self.stages_to(len(self.stages) - 1):
            state = stage(state)
        return self.classifier(state)


def as_spec(inputs: Any) -> InputSpec:
    """Return the description of inputs given as one, as a shape without the batch axis, or as an example batch."""
    if isinstance(inputs, InputSpec):
        return inputs
    if isinstance(inputs, tuple | list | torch.Size) and all(isinstance(side, int) for side in inputs):
        return InputSpec.of_shape(inputs)
    return InputSpec.of_example(inputs)


def first_state(backbone: Backbone) -> Any:
    """Return the smallest batch that a backbone takes, of numbers from -1 to 1."""
    like = next(backbone.parameters(), torch.empty(0))
    return mapped(backbone.inputs.sample(1, like), lambda x: _spread(x) if x.is_floating_point() else x)


def _spread(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)


@torch.no_grad()
def states_of(backbone: Backbone) -> list[Any]:
    """Return what each stage and the classifier take, for one sample, on the CPU."""
    backbone = copy.deepcopy(backbone).cpu().eval()
    first = first_state(backbone)
    return [first, *backbone.features(first)]


def features_of(state: Any) -> Tensor:
    """Return the features (N, ...) in what a stage returned."""
    return state if isinstance(state, Tensor) else state["features"]


def seen(state: Any) -> Any:
    """Return what a head reads of what a stage returned: the features, or (tokens (N, T, D), attention mask (N, T))."""
    if isinstance(state, Tensor):
        return state
    mask = state.get("attention_mask")
    return state["features"] if mask is None else (state["features"], mask)


class Resized(nn.Module):
    """A first stage that resizes the images before it computes.

    Args:
        stage: the stage.
        size: side of the resized images in pixels.
    """

    def __init__(self, stage: nn.Module, size: int) -> None:
        super().__init__()
        self.stage, self.size = stage, size

    def forward(self, images: Tensor) -> Any:
        """Resize images (N, C, H, W) bilinearly to (N, C, size, size), and compute the stage."""
        small = nn.functional.interpolate(
            images, (self.size, self.size), mode="bilinear", align_corners=False
        )
        return self.stage(small)


class Fp32Linear(nn.Linear):
    """A Linear that computes in float32 even under autocast. Logits in bfloat16 would give many equal confidences."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, out) float32 from (N, in)."""
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())
