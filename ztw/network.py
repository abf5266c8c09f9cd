"""The one early-exit network: a backbone, heads on its blocks, and inference that really stops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ztw.backbone import Backbone
from ztw.costs import backbone_macs, stage_costs
from ztw.ensembles import Ensemble
from ztw.errors import ZtwError, unknown
from ztw.heads import HEADS
from ztw.rules import ExitRule, State


@dataclass(frozen=True)
class IcMode:
    """How internal classifiers (ICs) are connected: does each see the previous one's logits, with gradient?"""

    cascade: bool
    detach: bool = False


IC_MODES: dict[str, IcMode] = {
    "independent": IcMode(cascade=False),
    "cascade": IcMode(cascade=True),
    "cascade_detached": IcMode(cascade=True, detach=True),
}

Placement = str | Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class ExitResult:
    """What `infer` answers, in the order of its input.

    logits: float32 (N, classes) of the exit each sample left at (log-probabilities with an
    ensemble); exit_index: int64 (N,), 0 = the first exit.
    """

    logits: Tensor
    exit_index: Tensor


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

    def _exit_logits(self, exit: int, features: Tensor, previous: Tensor | None) -> Tensor:
        if exit == len(self.heads):
            return self.backbone.classifier(features).float()
        if not self.mode.cascade or previous is None:
            return self.heads[exit](features)
        return self.heads[exit](features, previous.detach() if self.mode.detach else previous)

    def ic_logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Logits [(N, C)] of the ICs alone; features: the output of EVERY block, as Backbone.features yields."""
        outputs: list[Tensor] = []
        for exit, block in enumerate(self.placement):
            outputs.append(self._exit_logits(exit, features[block], outputs[-1] if outputs else None))
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """images (N, C, H, W) -> logits float32 (K, N, classes) of every exit, nothing stopped."""
        features = list(self.backbone.features(images))
        return torch.stack([*self.ic_logits(features), self.backbone.classifier(features[-1]).float()])

    def _segments(self) -> Iterator[Sequence[nn.Module]]:
        """The stages between one exit and the next, K of them (the last may be empty)."""
        start = 0
        for block in (*self.placement, len(self.backbone.stages) - 1):
            yield list(self.backbone.stages)[start : block + 1]
            start = block + 1

    @torch.inference_mode()
    def infer(self, images: Tensor, rule: ExitRule) -> ExitResult:
        """Classify with early exits; samples that left are not computed further.

        images: (N, C, H, W); rule: e.g. MaxSoftmax(0.9). The network must be in eval mode, else
        ZtwError: BatchNorm would depend on who is still in the batch.
        """
        if self.training:
            raise ZtwError("infer: the network is in training mode; call .eval() first")
        count = len(images)
        answers = images.new_empty(count, self.backbone.classes, dtype=torch.float32)
        exit_index = torch.full((count,), self.exits - 1, dtype=torch.int64, device=images.device)
        active = torch.arange(count, device=images.device)
        hidden = images
        state: State = ()
        members: list[Tensor] = []
        previous: Tensor | None = None
        for exit, segment in enumerate(self._segments()):
            for stage in segment:
                hidden = stage(hidden)
            previous = self._exit_logits(exit, hidden, previous)
            answer = previous
            if self.ensemble is not None:
                members = [*members, previous]
                answer = self.ensemble.combine(exit, torch.stack(members).log_softmax(-1))
            score, state = rule.score(answer, state)
            leaves = rule.leaves(score)
            if exit == self.exits - 1:
                leaves = torch.ones_like(leaves)
            answers[active[leaves]] = answer[leaves]
            exit_index[active[leaves]] = exit
            stays = ~leaves
            if not stays.any():
                break
            active, hidden, previous = active[stays], hidden[stays], previous[stays]
            state = tuple(item[stays] for item in state)
            members = [member[stays] for member in members]
        return ExitResult(answers, exit_index)


def resolve_placement(backbone: Backbone, placement: Placement) -> tuple[int, ...]:
    """Turn a placement into block indices.

    placement: "all" = after every block; whole numbers = block indices from 0; fractions in (0, 1]
    of the backbone's MACs = after the block whose cumulative cost is nearest.
    Raises ZtwError for a block beyond the last, a fraction outside (0, 1], or two heads on one block.
    """
    blocks = len(backbone.stages)
    if isinstance(placement, str):
        if placement != "all":
            raise ZtwError(f"placement {placement!r}: must be 'all', block indices or fractions of the cost")
        return tuple(range(blocks))
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
    backbone: Backbone, ics: str = "independent", head: str = "conv", placement: Placement = "all"
) -> EarlyExitNetwork:
    """Put untrained ICs on a backbone.

    ics: a name of IC_MODES; head: a name of HEADS; placement: see `resolve_placement`.
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
        )
        for exit, block in enumerate(blocks)
    ]
    return EarlyExitNetwork(backbone, heads, blocks, ics).to(memory_format=torch.channels_last)
