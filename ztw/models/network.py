"""The one early-exit network: a backbone, heads on its blocks, and inference that really stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor, nn

from ztw.device import check_default_dtype
from ztw.errors import ZtwError, unknown
from ztw.exits.ensemble_base import Ensemble
from ztw.exits.inference import ExitFunction, ExitResult, Route, infer
from ztw.exits.rules import ExitRule, as_rule
from ztw.models.backbone import Backbone
from ztw.models.heads import Head
from ztw.models.inputs import examine, give, keep_contiguous
from ztw.models.pooling import MixedPool
from ztw.models.supported import check_supported
from ztw.tensors import as_tensor, check_images


@dataclass(frozen=True)
class Connection:
    """How internal classifiers (ICs) are connected.

    name: in CONNECTIONS; cascade: each sees the previous one's logits; detach: without gradient; additive: each
    exit, the backbone's own too, adds to a share of the previous one's logits, without gradient.
    """

    name: str
    cascade: bool
    detach: bool = False
    additive: bool = False


CONNECTIONS: dict[str, Connection] = {
    known.name: known
    for known in (
        Connection("independent", cascade=False),
        Connection("cascade", cascade=True),
        Connection("cascade_detached", cascade=True, detach=True),
        Connection("boosted", cascade=False, additive=True),
    )
}


def list_connections() -> list[str]:
    """List the names of the ways in which internal classifiers can be connected."""
    return list(CONNECTIONS)


def connection_of(name: str) -> Connection:
    """Look up a connection by its name; raises ZtwError for one that is not in CONNECTIONS."""
    if name not in CONNECTIONS:
        raise unknown("connection", name, CONNECTIONS)
    return CONNECTIONS[name]


# F_k = f_k + t F_{k-1}: t of BoostNet (Yu et al. 2023, "prediction reweighting")
BOOST_TEMPERATURE = 0.5


def boosted(logits: Tensor, previous: Tensor) -> Tensor:
    """An exit's own logits and a share of the previous one's, without gradient (Yu et al. 2023)."""
    return logits + BOOST_TEMPERATURE * previous.detach()


class EarlyExitNetwork(nn.Module):
    """A backbone with K - 1 ICs; exit K is the backbone's own classifier.

    placement: index of the block each head sits on, increasing; connection: a name of CONNECTIONS. `ensemble` may be
    set to a fitted Ensemble; `infer` then decides and answers with it, `forward` stays the single exits.
    Optional metadata: class_names, in the order of the labels; normalisation, the mean and std per channel of its
    images' pixels in [0, 1]; anatomy, the head and its options that `build_network` was called with.
    Raises ZtwError for an unknown connection.
    """

    class_names: tuple[str, ...] | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    anatomy: dict[str, Any] | None = None

    def __init__(
        self, backbone: Backbone, heads: Sequence[nn.Module], placement: tuple[int, ...], connection: str
    ) -> None:
        check_default_dtype()
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.placement = placement
        self.connection = connection_of(connection)
        self.ensemble: Ensemble | None = None
        for exit, head in enumerate(self.heads):
            check_supported(head, f"head {exit + 1}")
            if not _only_reads(head):  # trying it would take long
                self._protect_features(head, exit)

    def _protect_features(self, head: nn.Module, exit: int) -> None:
        """Give a head a copy of its features where it would overwrite them: others read them too."""
        previous = [(self.backbone.num_classes,)] if self.connection.cascade and exit else []
        features = self.backbone.feature_shapes[self.placement[exit]]
        give(head, examine(head, features, *previous)[1])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for head in self.heads:  # after a change to channels_last
            keep_contiguous(head)
        return self

    @property
    def exits(self) -> int:
        """K, the backbone's own exit included."""
        return len(self.heads) + 1

    def exit_function(self, exit: int) -> ExitFunction:
        """What computes the logits (N, C) of an exit (from 0); its second argument is None at the first."""
        last = exit == len(self.heads)
        module = self.backbone.classifier if last else self.heads[exit]
        if exit and self.connection.additive:
            return lambda features, previous: boosted(module(features).float(), previous)
        if exit and self.connection.cascade and not last:
            if self.connection.detach:
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
            last = boosted(own, outputs[-1]) if self.connection.additive and outputs else own
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
            if index == exit or self.connection.cascade or self.connection.additive:
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
    def infer(self, images: Tensor, rule: ExitRule | str) -> ExitResult:
        """Classify with early exits; samples that left are not computed further.

        Args:
            images: (N, C, H, W) of the network's size, float32, normalised as in training; a numpy array is taken,
                other floating-point numbers are converted.
            rule: e.g. MaxSoftmax(0.9) or "max_softmax 0.9".

        Raises:
            ZtwError: for other images, NaN and infinite ones included; for a rule with thresholds for another number
                of exits; in training mode, where BatchNorm would depend on the samples that are still in the batch.
        """
        check_default_dtype()
        if self.training:
            raise ZtwError("infer: the network is in training mode; call .eval() first")
        images, rule = as_tensor(images, "images"), as_rule(rule)
        check_images(images, self.backbone.input_shape)
        like = next(self.backbone.parameters(), images)
        return infer(self.route(), images.to(like.dtype), rule)

    def route(self) -> Route:
        """What `infer` needs of this network; looked up once a call, because a module's attributes are slow."""
        numbers = [math.prod(shape) for shape in self.backbone.feature_shapes]
        largest = list(accumulate(reversed(numbers), max))[::-1]  # from each block on: the largest to come
        firsts = [0, *(block + 1 for block in self.placement)]  # the first block on the way to each exit
        return Route(
            [(stages, self.exit_function(exit)) for exit, stages in enumerate(self.segments())],
            [largest[min(block, len(largest) - 1)] for block in firsts],
            self.connection.cascade or self.connection.additive,
            self.backbone.num_classes,
            self.ensemble,
        )


def _only_reads(head: nn.Module) -> bool:
    """Whether a head is known to leave its features alone, in whatever memory format they are."""
    body = list(head.body.children()) if isinstance(head, Head) else []
    known = (nn.ReLU, nn.Flatten, MixedPool, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    return bool(body) and type(body[0]) is nn.Conv2d and all(type(part) in known for part in body[1:])


def static_network(backbone: Backbone) -> EarlyExitNetwork:
    """A backbone alone, as the network whose one exit is its classifier."""
    network = EarlyExitNetwork(backbone, [], (), "independent")
    network.anatomy = {}
    return network
