"""The base of every backbone: a list of stages, after which exits may be placed, and a classifier."""

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
    """Options of a backbone. Not every architecture has all of them, see `OPTION_OWNERS`.

    Args:
        shortcut: of CIFAR ResNets (He et al. 2016). "conv" = option B, a 1x1 convolution; "pad" = option A, without
            parameters.
        ic_features: where a stage of a CIFAR ResNet ends: "before_relu", at the block's sum (released code), or
            "after_relu".
        last_norm_momentum: momentum of the last BatchNorm of the Wide ResNet. The released code has 0.9.
        init: initial weights, "torch" (PyTorch's) or "released" (see `ztw.models.initialisation`).
    """

    shortcut: str = "conv"
    ic_features: str = "before_relu"
    last_norm_momentum: float = 0.1
    init: str = "torch"

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

    A stage that overwrites its input receives a copy. A stage that cannot read channels_last memory, e.g. because it
    calls `view`, receives contiguous memory.

    Args:
        arch: name of the architecture.
        stages: modules applied in order, one per block. The first includes the stem.
        classifier: module from the last stage's output to logits (N, classes).
        input_shape: (channels, height, width) of the images.

    Attributes:
        feature_shapes: shape of each stage's output, without the batch axis.
        num_classes: number of classes.
        origin: the call that built the backbone, e.g. {"build_backbone": {"arch": "resnet8", ...}}, or None.

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
        shapes, self.needs = list[Shape]([input_shape]), dict[str, list[str]]()
        for name, part in self._parts():
            shape, self.needs[name] = examine(part, shapes[-1])
            shapes.append(shape)
        self.feature_shapes, self.num_classes = shapes[1:-1], shapes[-1][0]
        self.give_needs()
        self.train()

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

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the output of each stage for images (N, C, H, W)."""
        hidden = images
        for stage in self.stages:
            hidden = stage(hidden)
            yield hidden

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, classes) for images (N, C, H, W)."""
        *_, last = self.features(images)
        return self.classifier(last)


class Fp32Linear(nn.Linear):
    """A Linear that computes in float32 even under autocast. Logits in bfloat16 would give many equal confidences."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, out) float32 from (N, in)."""
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())
