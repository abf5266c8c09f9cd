"""The early-exit network: a backbone, heads on its blocks, and early-exit inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor, nn

from ztw.batch import Batch, converted, device_of, mapped
from ztw.device import check_default_dtype
from ztw.errors import ZtwError, unknown
from ztw.exits.ensemble_base import Ensemble
from ztw.exits.inference import ExitFunction, ExitResult, Route, infer
from ztw.exits.rules import ExitRule, FixedExit, as_rule
from ztw.models.backbone import Backbone, seen, states_of
from ztw.models.heads import Head, LogitsHead
from ztw.models.inputs import examine, give, keep_contiguous, modes_kept
from ztw.models.pooling import MixedPool
from ztw.models.supported import check_supported


@dataclass(frozen=True)
class Connection:
    """How internal classifiers (ICs) are connected.

    Args:
        name: name in CONNECTIONS.
        cascade: whether each IC receives the previous exit's logits.
        detach: whether the gradient stops at these logits.
        additive: whether a share of the previous exit's logits is added to the logits of each IC and of the backbone.
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
    """List the names of the connections between internal classifiers (ICs).

    - "independent": none (SDN 2019).
    - "cascade": each IC also receives the previous exit's logits.
    - "cascade_detached": as "cascade", and the gradient stops at these logits (ZTW 2021).
    - "boosted": each exit adds half of the previous exit's logits to its own, without gradient (BoostNet 2023).

    Example:
        >>> import ztw
        >>> ztw.list_connections()
        ['independent', 'cascade', 'cascade_detached', 'boosted']
    """
    return list(CONNECTIONS)


def connection_of(name: str) -> Connection:
    """Return a connection by its name; raise ZtwError for a name that is not in CONNECTIONS."""
    if name not in CONNECTIONS:
        raise unknown("connection", name, CONNECTIONS)
    return CONNECTIONS[name]


# t in F_k = f_k + t F_{k-1} of BoostNet (Yu et al. 2023, "prediction reweighting")
BOOST_TEMPERATURE = 0.5


def boosted(logits: Tensor, previous: Tensor) -> Tensor:
    """Add a share of the previous exit's logits, without gradient, to an exit's logits (Yu et al. 2023)."""
    return logits + BOOST_TEMPERATURE * previous.detach()


class EarlyExitNetwork(nn.Module):
    """A backbone with K - 1 internal classifiers (ICs). Exit K is the backbone's own classifier.

    Args:
        backbone: the stages and the last classifier.
        heads: the ICs.
        placement: for each IC the index of its block, from 0, increasing.
        connection: how the ICs are connected, one of `list_connections()`.

    Attributes:
        ensemble: a fitted Ensemble, which `infer` uses, or None. `forward` returns the logits of single exits.
        class_names: names of the classes, or None.
        normalisation: (mean, std) of the images per channel, for pixels in [0, 1], or None.
        anatomy: the arguments `head` and `head_options` of `build_network`, or None.

    Raises:
        ZtwError: for an unknown connection, and for a head that cannot be copied or traced.

    Example:
        >>> import torch, ztw
        >>> network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool").eval()
        >>> network(torch.randn(5, 3, 32, 32)).shape  # (exits, images, classes)
        torch.Size([4, 5, 10])
        >>> network.infer(torch.randn(5, 3, 32, 32), "max_softmax 0.9").logits.shape
        torch.Size([5, 10])
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
            if not _only_reads(head):  # the examination of a head is slow
                self._protect_features(head, exit)

    def _protect_features(self, head: nn.Module, exit: int) -> None:
        """Give a head that overwrites its features a copy, because other parts read them, too."""
        where = next(head.parameters(), torch.empty(0)).device
        features = mapped(seen(states_of(self.backbone)[self.placement[exit] + 1]), lambda x: x.to(where))
        previous = torch.zeros(1, self.backbone.num_classes, device=where)
        give(head, examine(head, features, *([previous] if self.connection.cascade and exit else []))[1])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for head in self.heads:  # the memory format may have changed
            keep_contiguous(head)
        return self

    @property
    def exits(self) -> int:
        """Number of exits K, including the backbone's own."""
        return len(self.heads) + 1

    def needs_previous(self, exit: int) -> bool:
        """Return whether an exit (from 0) needs the logits of the previous exit."""
        cascade = self.connection.cascade and exit < len(self.heads)
        return exit > 0 and (self.connection.additive or cascade)

    def exit_function(self, exit: int) -> ExitFunction:
        """Return the function from (state, the previous exit's logits) to the logits (N, C) of an exit (from 0).

        The state is what the exit's stage returned. The second argument is None at the first exit.
        """
        if exit == len(self.heads):
            module: Callable[..., Tensor] = self.backbone.classifier
        else:
            module = _on_features(self.heads[exit]) if self.backbone.returns_dicts else self.heads[exit]
        if self.connection.additive and self.needs_previous(exit):
            return lambda features, previous: boosted(module(features).float(), previous)
        if self.needs_previous(exit):
            if self.connection.detach:
                return lambda features, previous: module(features, previous.detach()).float()
            return lambda features, previous: module(features, previous).float()
        return lambda features, previous: module(features).float()

    def ic_logits(self, features: Sequence[Any]) -> list[Tensor]:
        """Compute the logits [(N, C)] of the ICs; features: what EVERY block returned, see `Backbone.features`."""
        outputs: list[Tensor] = []
        for exit, block in enumerate(self.placement):
            outputs.append(self.exit_function(exit)(features[block], outputs[-1] if outputs else None))
        return outputs

    def exit_logits(self, features: Sequence[Any], own: Tensor | None = None) -> list[Tensor]:
        """Compute the logits [(N, C)] of all K exits.

        Args:
            features: what every block returned.
            own: logits (N, C) of the backbone's classifier; None = compute them.
        """
        outputs = self.ic_logits(features)
        if own is None:
            last = self.exit_function(len(self.heads))(features[-1], outputs[-1] if outputs else None)
        else:
            last = boosted(own, outputs[-1]) if self.connection.additive and outputs else own
        return [*outputs, last]

    def forward(self, batch: Batch) -> Tensor:
        """Compute the logits float32 (K, N, classes) of every exit for a batch, without early exits."""
        return torch.stack(self.exit_logits(list(self.backbone.features(batch))))

    def logits_at(self, exit: int, batch: Batch) -> Tensor:
        """Compute the logits (N, classes) of one exit (from 0) for a batch, and no later stage."""
        if not self.needs_previous(exit):
            hidden: Any = batch
            for stage in self.backbone.stages_to(self.block_of(exit)):
                hidden = stage(hidden)
            return self.exit_function(exit)(hidden, None)
        previous, hidden = None, batch
        for index, segment in enumerate(self.segments()):
            for stage in segment:
                hidden = stage(hidden)
            previous = self.exit_function(index)(hidden, previous)
            if index == exit:
                break
        assert previous is not None
        return previous

    def cut_after(self, exit: int) -> EarlyExitNetwork:
        """Cut the network after one exit, which becomes its only exit. The modules are shared, not copied.

        Args:
            exit: number of the exit, from 1; K = the backbone alone.

        Raises:
            ZtwError: for an exit that does not exist or that needs the logits of the previous one, and for a network
                with an ensemble.

        Example:
            >>> import torch, ztw
            >>> network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False).eval()
            >>> network.cut_after(1)(torch.randn(5, 3, 32, 32)).shape  # (exits, images, classes)
            torch.Size([1, 5, 10])
        """
        FixedExit(exit).bounds(self.exits)
        self.check_fixed_exit()
        if self.needs_previous(exit - 1):
            raise ZtwError(
                f"cut_after: exit {exit} needs the logits of exit {exit - 1} (connection {self.connection.name!r}); use"
                f" infer or export_onnx with the rule 'fixed_exit {exit}'"
            )
        backbone, block = self.backbone, self.block_of(exit - 1)
        head = backbone.classifier if exit == self.exits else self.heads[exit - 1]
        if exit < self.exits and backbone.returns_dicts:
            head = OnFeatures(head)
        with modes_kept(self):
            alone = Backbone(backbone.arch, backbone.stages_to(block), head, backbone.inputs)
            alone.channels_first = tuple(backbone.channels_first[number] for number in backbone.needed(block))
            cut = static_network(alone)
        shared = set(self.modules())
        for module in cut.modules():
            module.training = module.training if module in shared else self.training
        cut.class_names, cut.normalisation = self.class_names, self.normalisation
        return cut

    def block_of(self, exit: int) -> int:
        """Return the block of an exit, both from 0."""
        return self.placement[exit] if exit < len(self.placement) else len(self.backbone.stages) - 1

    def segments(self) -> Iterator[Sequence[nn.Module]]:
        """Yield for each of the K exits the stages between the previous exit and this one.

        The last exit has none if an IC follows the last stage.
        """
        stages, start = list(self.backbone.stages), 0
        if not self.placement:
            yield self.backbone.stages_to(len(stages) - 1)
            return
        for block in (*self.placement, len(stages) - 1):
            yield stages[start : block + 1]
            start = block + 1

    @torch.inference_mode()
    def infer(self, batch: Any, rule: ExitRule | str) -> ExitResult:
        """Classify samples with early exits. Samples that have left are removed from the batch.

        Args:
            batch: what the network takes, e.g. images float32 (N, C, H, W), normalised as in training, or a dict of
                input_ids and attention_mask (N, T). NumPy arrays and other floating-point types are converted.
            rule: a rule with its parameter, e.g. MaxSoftmax(0.9) or "max_softmax 0.9".

        Returns:
            Logits and exit index of each sample.

        Raises:
            ZtwError: in training mode; for inputs of another shape or with values that are not finite; for an unknown
                rule, or thresholds for another number of exits.
        """
        check_default_dtype()
        if self.training:
            # BatchNorm would depend on the samples that are still in the batch
            raise ZtwError("infer: the network is in training mode; call .eval() first")
        batch, rule = self.backbone.inputs.check(batch), as_rule(rule)
        like = next(self.backbone.parameters(), torch.empty(0))
        batch = converted(batch, device_of(batch), like.dtype)
        if rule.only_exit is not None:
            return self._infer_at(rule, batch)
        return infer(self.route(), batch, rule)

    def _infer_at(self, rule: ExitRule, batch: Batch) -> ExitResult:
        """Classify all samples at the only exit of a rule."""
        self.check_fixed_exit()
        rule.bounds(self.exits)  # raises ZtwError for an exit that does not exist
        exit = (rule.only_exit or 1) - 1
        route = self.route()
        steps: list[Any] = [([], lambda given, previous: self.logits_at(exit, given))]
        alone = replace(route, steps=steps, largest=route.largest[:1], chained=False)
        found = infer(alone, batch, FixedExit(1))
        return ExitResult(found.logits, found.exit_index + exit)

    def check_fixed_exit(self) -> None:
        """Raise ZtwError for a network with an ensemble, because a fixed exit is computed alone."""
        if self.ensemble is not None:
            raise ZtwError(
                "fixed_exit: the network has an ensemble, which combines exits; set network.ensemble = None"
            )

    def route(self) -> Route:
        """Return the network as a sequence of exits, which `infer` reads faster than attributes of modules."""
        largest = list(accumulate(reversed(self.backbone.working_sizes), max))[
            ::-1
        ]  # the largest from each block to the last
        firsts = [0, *(block + 1 for block in self.placement)]  # the first block after the previous exit
        return Route(
            [(stages, self.exit_function(exit)) for exit, stages in enumerate(self.segments())],
            [largest[min(block, len(largest) - 1)] for block in firsts],
            self.connection.cascade or self.connection.additive,
            self.backbone.num_classes,
            self.ensemble,
        )


def _on_features(head: nn.Module) -> Callable[..., Tensor]:
    """Return a head as a function of a state."""
    return lambda state, *previous: head(seen(state), *previous)


class OnFeatures(nn.Module):
    """A head that takes what a stage returned, a tensor or a dict."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: Any) -> Tensor:
        """Compute logits (N, classes)."""
        return self.head(seen(state))


def _only_reads(head: nn.Module) -> bool:
    """Return whether a head only reads its features, in any memory format. False = not known."""
    if isinstance(head, LogitsHead):
        return True
    body = list(head.body.children()) if isinstance(head, Head) else []
    known = (nn.ReLU, nn.Flatten, MixedPool, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
    return bool(body) and type(body[0]) is nn.Conv2d and all(type(part) in known for part in body[1:])


def static_network(backbone: Backbone) -> EarlyExitNetwork:
    """Return a backbone as a network with one exit, its classifier."""
    network = EarlyExitNetwork(backbone, [], (), "independent")
    network.anatomy = {}
    return network
