"""What every backbone is: a list of stages, where exits may be placed, and a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from ztw.device import check_default_dtype
from ztw.errors import unknown
from ztw.models.inputs import Shape, examine, give
from ztw.models.supported import check_supported


@dataclass(frozen=True)
class BackboneOptions:
    """What may be chosen about a backbone, where it has it (`ztw.study.names.OPTION_OWNERS`).

    shortcut: of the CIFAR ResNets, "conv" (1x1 convolution) or "pad" (no parameters): options B and A of He et
    al. 2016; ic_features: theirs too, whether a stage ends "before_relu", at the block's sum (the released
    code), or "after_relu"; last_norm_momentum: of the Wide ResNet's last BatchNorm, released: 0.9;
    init: the weights it starts with, "torch" (PyTorch's) or "released" (`ztw.models.initialisation`).
    """

    shortcut: str = "conv"
    ic_features: str = "before_relu"
    last_norm_momentum: float = 0.1
    init: str = "torch"

    @classmethod
    def of(cls, given: dict[str, Any]) -> BackboneOptions:
        """From options by name; raises ZtwError for a name that is not one of the fields."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown("backbone option", name, known)
        return cls(**given)


class Backbone(nn.Module):
    """A network cut into stages; an exit can be placed after each.

    stages: modules applied in order, one per block (the stem belongs to the first);
    classifier: maps the last stage's output to logits (N, classes). Either may work in place or flatten by
    `view`: it is then given a copy, or a contiguous one, of what it is called with, and nobody sees a change.
    `origin`: the call it comes from, {"build_backbone": its arguments} or {"as_backbone": ...}, None for another.
    Raises ZtwError for a part that cannot be copied or followed, such as a TorchScript module.
    """

    origin: dict[str, dict[str, Any]] | None = None

    def __init__(
        self, arch: str, stages: Sequence[nn.Module], classifier: nn.Module, input_shape: tuple[int, int, int]
    ) -> None:
        check_default_dtype()
        super().__init__()
        self.arch = arch
        self.input_shape = input_shape
        self.stages = nn.ModuleList(stages)
        self.classifier = classifier
        check_supported(self, arch)
        # Measured rather than computed, so that a new backbone needs no formula of its own.
        shapes, self.needs = list[Shape]([input_shape]), dict[str, list[str]]()
        for name, part in self._parts():
            shape, self.needs[name] = examine(part, shapes[-1])
            shapes.append(shape)
        self.feature_shapes, self.num_classes = shapes[1:-1], shapes[-1][0]
        self.give_needs()
        self.train()

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Stages and classifier, by name."""
        yield from ((f"stages.{number}", stage) for number, stage in enumerate(self.stages))
        yield "classifier", self.classifier

    def give_needs(self) -> None:
        """See to it that no part changes its input; again where stages have been replaced."""
        for name, part in self._parts():
            give(part, self.needs[name])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.give_needs()  # torch.fx forgets the hooks of what it copies

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.give_needs()  # after a change to channels_last
        return self

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the output of every stage in turn, for images (N, C, H, W)."""
        hidden = images
        for stage in self.stages:
            hidden = stage(hidden)
            yield hidden

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> logits (N, classes)."""
        *_, last = self.features(images)
        return self.classifier(last)


class Fp32Linear(nn.Linear):
    """A Linear in float32 even under autocast: bfloat16 logits would tie many of the confidences."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out) float32."""
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())
