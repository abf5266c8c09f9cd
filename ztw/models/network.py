"""The one early-exit network: a backbone, heads on its blocks, and inference that really stops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ztw.errors import ZtwError, unknown
from ztw.exits.ensembles import Ensemble
from ztw.exits.inference import ExitFunction, ExitResult, Route, infer
from ztw.exits.rules import ExitRule
from ztw.models.backbone import Backbone
from ztw.models.heads import HEADS
from ztw.models.operations import backbone_macs, stage_costs
from ztw.study.names import placement_step


@dataclass(frozen=True)
class IcMode:
    """How internal classifiers (ICs) are connected.

    cascade: each sees the previous one's logits; detach: without gradient; additive: each exit, the
    backbone's own too, adds to a share of the previous one's logits, without gradient.
    """

    cascade: bool
    detach: bool = False
    additive: bool = False


IC_MODES: dict[str, IcMode] = {
    "independent": IcMode(cascade=False),
    "cascade": IcMode(cascade=True),
    "cascade_detached": IcMode(cascade=True, detach=True),
    "boosted": IcMode(cascade=False, additive=True),
}
# F_k = f_k + t F_{k-1}: t of BoostNet (Yu et al. 2023, "prediction reweighting")
BOOST_TEMPERATURE = 0.5

Placement = str | Sequence[int] | Sequence[float]


def boosted(logits: Tensor, previous: Tensor) -> Tensor:
    """An exit's own logits and a share of the previous one's, without gradient (Yu et al. 2023)."""
    return logits + BOOST_TEMPERATURE * previous.detach()


class EarlyExitNetwork(nn.Module):
    """A backbone with K - 1 ICs; exit K is the backbone's own classifier.

    placement: index of the block each head sits on, increasing. `ensemble` may be set to a fitted
    Ensemble; `infer` then decides and answers with it, `forward` stays the single exits.
    """

    def __init__(
        self, backbone: Backbone, heads: Sequence[nn.Module], placement: tuple[int, ...], ics: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.placement = placement
        self.ics = ics
        self.mode = IC_MODES[ics]
        self.ensemble: Ensemble | None = None

    @property
    def exits(self) -> int:
        """K, the backbone's own exit included."""
        return len(self.heads) + 1

    def exit_function(self, exit: int) -> ExitFunction:
        """What computes the logits (N, C) of an exit (from 0); its second argument is None at the first."""
        last = exit == len(self.heads)
        module = self.backbone.classifier if last else self.heads[exit]
        if exit and self.mode.additive:
            return lambda features, previous: boosted(module(features).float(), previous)
        if exit and self.mode.cascade and not last:
            if self.mode.detach:
                return lambda features, previous: module(features, previous.detach()).float()
            return lambda features, previous: module(features, previous).float()
        return lambda features, previous: module(features).float()

    def ic_logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits [(N, C)] of the ICs alone; features: the output of EVERY block, as Backbone.features yields."""
        outputs: list[Tensor] = []
        for exit, block in enumerate(self.placement):
            outputs.append(self.exit_function(exit)(features[block], outputs[-1] if outputs else None))
        return outputs

    def exit_logits(self, features: Sequence[Tensor], own: Tensor | None = None) -> list[Tensor]:
        """Logits [(N, C)] of all K exits; own: the backbone's own answer (N, C), computed when None."""
        outputs = self.ic_logits(features)
        if own is None:
            last = self.exit_function(len(self.heads))(features[-1], outputs[-1] if outputs else None)
        else:
            last = boosted(own, outputs[-1]) if self.mode.additive and outputs else own
        return [*outputs, last]

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> logits float32 (K, N, classes) of every exit, nothing stopped."""
        return torch.stack(self.exit_logits(list(self.backbone.features(images))))

    def logits_at(self, exit: int, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> logits (N, classes) of one exit (from 0), computed no further than that."""
        previous: Tensor | None = None
        hidden = images
        for index, segment in enumerate(self.segments()):
            for stage in segment:
                hidden = stage(hidden)
            if index == exit or self.mode.cascade or self.mode.additive:
                previous = self.exit_function(index)(hidden, previous)
            if index == exit:
                break
        assert previous is not None
        return previous

    def segments(self) -> Iterator[Sequence[nn.Module]]:
        """The stages between one exit and the next, K of them (the last may be empty)."""
        stages, start = list(self.backbone.stages), 0
        for block in (*self.placement, len(stages) - 1):
            yield stages[start : block + 1]
            start = block + 1

    @torch.inference_mode()
    def infer(self, images: Tensor, rule: ExitRule) -> ExitResult:
        """Classify with early exits; samples that left are not computed further.

        images: (N, C, H, W); rule: e.g. MaxSoftmax(0.9). The network must be in eval mode, else
        ZtwError: BatchNorm would depend on who is still in the batch. Also ZtwError for a rule with
        thresholds for another number of exits, and for images of another number of channels.
        """
        if self.training:
            raise ZtwError("infer: the network is in training mode; call .eval() first")
        channels = self.backbone.input_shape[0]
        if images.dim() != 4 or images.shape[1] != channels:
            raise ZtwError(
                f"images: shape {tuple(images.shape)}, must be (samples, {channels}, height, width)"
            )
        return infer(self.route(), images, rule)

    def route(self) -> Route:
        """What `infer` needs of this network; looked up once a call, because a module's attributes are slow."""
        numbers = [math.prod(shape) for shape in self.backbone.feature_shapes]
        largest = list(accumulate(reversed(numbers), max))[::-1]  # from each block on: the largest to come
        firsts = [0, *(block + 1 for block in self.placement)]  # the first block on the way to each exit
        return Route(
            [(stages, self.exit_function(exit)) for exit, stages in enumerate(self.segments())],
            [largest[min(block, len(largest) - 1)] for block in firsts],
            self.mode.cascade or self.mode.additive,
            self.backbone.classes,
            self.ensemble,
        )


def resolve_placement(backbone: Backbone, placement: Placement) -> tuple[int, ...]:
    """Turn a placement into block indices.

    placement: "all" = after every block; "every 3" = after every third; whole numbers = block indices
    from 0; fractions in (0, 1] of the backbone's MACs = after the block whose cumulative cost is nearest.
    Raises ZtwError for a block beyond the last, a fraction outside (0, 1], or two heads on one block.
    """
    blocks = len(backbone.stages)
    if isinstance(placement, str):
        step = placement_step(placement)
        if step is None:
            raise ZtwError(
                f"placement {placement!r}: must be all, every <n>, block indices or fractions of the cost"
            )
        if step > blocks:
            raise ZtwError(f"placement {placement!r}: {backbone.arch} has only {blocks} blocks")
        return tuple(range(step - 1, blocks, step))
    if not len(placement):
        raise ZtwError("placement []: must name at least one block")
    if all(isinstance(item, int) for item in placement):
        chosen = [int(item) for item in placement]
        for block in chosen:
            if not 0 <= block < blocks:
                raise ZtwError(f"placement {block}: {backbone.arch} has blocks 0..{blocks - 1}")
    else:
        done = stage_costs(backbone).cumsum(0) / backbone_macs(backbone)
        for item in placement:
            if not 0 < item <= 1:
                raise ZtwError(f"placement {item}: a fraction of the backbone's cost must lie in (0, 1]")
        chosen = [int((done - item).abs().argmin()) for item in placement]
    if any(later <= earlier for earlier, later in pairwise(chosen)):
        raise ZtwError(
            f"placement {list(placement)}: means blocks {chosen} of {backbone.arch}, must be increasing"
        )
    return tuple(chosen)


def build_network(
    backbone: Backbone,
    ics: str = "independent",
    head: str = "conv",
    placement: Placement = "all",
    **head_options: Any,
) -> EarlyExitNetwork:
    """Put untrained ICs on a backbone.

    ics: a name of IC_MODES; head: a name of HEADS; placement: see `resolve_placement`;
    head_options: pooling, width, layer_norm of the heads, see `ztw.heads.conv_head`.
    Raises ZtwError for an unknown name or an impossible placement.
    """
    if ics not in IC_MODES:
        raise unknown("IC training mode", ics, IC_MODES)
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    blocks = resolve_placement(backbone, placement)
    heads = [
        HEADS[head](
            backbone.feature_shapes[block],
            backbone.classes,
            previous=backbone.classes if IC_MODES[ics].cascade and exit else 0,
            image_size=backbone.input_shape[-1],
            **head_options,
        )
        for exit, block in enumerate(blocks)
    ]
    return EarlyExitNetwork(backbone, heads, blocks, ics).to(memory_format=torch.channels_last)
