"""Modules for the export to ONNX: a network that computes the logits and the score of every exit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ztw.errors import ZtwError
from ztw.exits.ensemble_base import Ensemble, LinearEnsemble
from ztw.exits.inference import better
from ztw.exits.logits import floored
from ztw.exits.rules import ExitRule, State
from ztw.models.folding import fold_batch_norm
from ztw.models.heads import Head
from ztw.models.network import EarlyExitNetwork
from ztw.models.pooling import MixedPool


class AllExits(nn.Module):
    """A network, from `exportable`, that returns the logits (N, classes) and the score (N,) of every exit.

    They are those of `infer`. The last exit has no score, because all remaining samples leave there.
    """

    def __init__(self, network: EarlyExitNetwork, rule: type[ExitRule]) -> None:
        super().__init__()
        self.network, self.rule = network, rule
        self.ensemble = None if network.ensemble is None else StackedEnsemble(network.ensemble)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute every exit, without early exits; inputs: the tensors of a batch."""
        hidden: Any = self.network.backbone.inputs.build(inputs)
        previous: Tensor | None = None
        state: State = ()
        best: State = ()
        members: Tensor | None = None
        outputs: list[Tensor] = []
        for exit, stages in enumerate(self.network.segments()):
            for stage in stages:
                hidden = stage(hidden)
            logits = previous = self.network.exit_function(exit)(hidden, previous)
            if self.ensemble is not None:
                logits, members = self.ensemble(exit, logits, members)
            score, state = self.rule.score_at(exit, logits, state)
            if self.rule.best_answers:
                best = better(best, (score, logits))
            outputs += [logits, score.float()]
        if best:
            outputs[-2] = best[1]
        return tuple(outputs[:-1])


class OneExit(nn.Module):
    """A network, from `exportable`, that returns the logits (N, classes) of one exit (from 0) only."""

    def __init__(self, network: EarlyExitNetwork, exit: int) -> None:
        super().__init__()
        self.network, self.exit = network, exit

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Compute this exit; inputs: the tensors of a batch."""
        return (self.network.logits_at(self.exit, self.network.backbone.inputs.build(inputs)),)


class StackedEnsemble(nn.Module):
    """Computes an ensemble exit by exit. If it is linear, an exit is one matrix product of stacked terms (N, C, m)."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble: Any = ensemble
        if isinstance(ensemble, LinearEnsemble):
            coefficients, constants = ensemble.linear()
            self.register_buffer("coefficients", coefficients)
            self.register_buffer("constants", constants)

    def forward(self, exit: int, logits: Tensor, members: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the unnormalised log-probabilities (N, classes) of an exit (from 0), and the members with this one."""
        if not self.ensemble.ensembled(exit):
            return floored(logits), members
        linear = isinstance(self.ensemble, LinearEnsemble)
        member = (self.ensemble.member(logits) if linear else floored(logits))[..., None]
        members = member if members is None else torch.cat([members, member], -1)
        if not linear:
            return self.ensemble.combine(members.permute(2, 0, 1)), members
        shares = self.get_buffer("coefficients")[exit, : exit + 1]
        return self.ensemble.finish(members @ shares + self.get_buffer("constants")[exit]), members


def exportable(network: EarlyExitNetwork) -> EarlyExitNetwork:
    """Copy a network to the CPU in eval mode, and replace operations that ONNX lacks by equivalent ones.

    BatchNorms are folded where possible, and the poolings of the heads are replaced. The Linear after a mixed pool
    absorbs its alpha.
    """
    try:
        ready = fold_batch_norm(network)
    except ZtwError:  # a stage that cannot be traced; ONNX Runtime folds its BatchNorms
        ready = copy.deepcopy(network).eval()
    ready = ready.cpu().to(memory_format=torch.contiguous_format).requires_grad_(False)
    for number, head in enumerate(ready.heads):
        seen = ready.backbone.num_classes if ready.connection.cascade and number else 0
        ready.heads[number] = PooledHead(head, seen) if _is_mixed(head) else _with_plain_pools(head)
    return ready


def _is_mixed(head: nn.Module) -> bool:
    body = list(head.body.children()) if isinstance(head, Head) else []
    return len(body) >= 2 and isinstance(body[-2], MixedPool) and isinstance(body[-1], nn.Flatten)


class PooledHead(nn.Module):
    """A `Head` with a mixed pool, whose alpha is multiplied into the weights of the Linear.

    The Linear also receives `previous` logits of the previous exit.
    """

    def __init__(self, head: nn.Module, previous: int) -> None:
        super().__init__()
        assert isinstance(head, Head)
        *before, pool, _ = head.body.children()
        assert isinstance(pool, MixedPool)
        self.before, self.norm, self.target = nn.Sequential(*before), head.norm, pool.target
        share, weight = float(pool.alpha), head.linear.weight.detach()
        features = weight.shape[1] - previous
        of_features, of_previous = weight[:, :features].T, weight[:, features:].T
        self.register_buffer("bias", head.linear.bias.detach())
        self.register_buffer("of_map", of_features.contiguous())
        self.register_buffer("of_maximum", (share * of_features).contiguous())
        self.register_buffer("of_average", ((1 - share) * of_features).contiguous())
        self.register_buffer("of_previous", of_previous.contiguous())

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:
        """See `Head.forward`."""
        part, x = self.get_buffer, self.before(features)
        if x.shape[-2:] == (self.target, self.target):
            logits = torch.addmm(part("bias"), x.flatten(1), part("of_map"))
        else:
            logits = torch.addmm(part("bias"), plain_max(x, self.target).flatten(1), part("of_maximum"))
            logits = torch.addmm(logits, plain_average(x, self.target).flatten(1), part("of_average"))
        if previous is not None and len(part("of_previous")):
            logits = torch.addmm(logits, self.norm(previous), part("of_previous"))
        return logits


class PlainPool(nn.Module):
    """Adaptive pooling (maximum, average or mixed) in operations that ONNX has."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        if isinstance(pool, MixedPool):
            self.target, self.share = pool.target, float(pool.alpha)
        else:
            self.target, self.share = int(pool.output_size), float(isinstance(pool, nn.AdaptiveMaxPool2d))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, C, target, target) from (N, C, H, W)."""
        if self.share == 1.0:
            return plain_max(x, self.target)
        if self.share == 0.0:
            return plain_average(x, self.target)
        return self.share * plain_max(x, self.target) + (1 - self.share) * plain_average(x, self.target)


def _with_plain_pools(head: nn.Module) -> nn.Module:
    for name, part in list(head.named_modules()):
        square = isinstance(getattr(part, "output_size", None), int)
        if isinstance(part, MixedPool) or (
            square and isinstance(part, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        ):
            head.set_submodule(name, PlainPool(part))
    return head


def plain_average(x: Tensor, target: int) -> Tensor:
    """Compute adaptive average pooling from (N, C, H, W) to (N, C, target, target)."""
    height, width = x.shape[-2:]
    if height % target == 0 == width % target:
        return F.avg_pool2d(x, (height // target, width // target))
    # in NumPy, because the exporter would trace every operation of PyTorch
    matrix = np.kron(_shares(height, target), _shares(width, target)).T
    return (x.flatten(2) @ torch.tensor(matrix.tolist())).unflatten(2, (target, target))


def plain_max(x: Tensor, target: int) -> Tensor:
    """Compute adaptive maximum pooling from (N, C, H, W) to (N, C, target, target)."""
    height, width = x.shape[-2:]
    if height % target == 0 == width % target:
        return F.max_pool2d(x, (height // target, width // target))
    (rows, tall), (columns, wide) = _windows(height, target), _windows(width, target)
    return F.max_pool2d(x.index_select(2, rows).index_select(3, columns), (tall, wide))


def _shares(size: int, target: int) -> np.ndarray:
    """Return adaptive average pooling of one axis as a matrix (target, size)."""
    place, spans = np.arange(size), _spans(size, target)
    return np.stack([((start <= place) & (place < end)) / (end - start) for start, end in spans])


def _spans(size: int, target: int) -> list[tuple[int, int]]:
    return [(place * size // target, -(-(place + 1) * size // target)) for place in range(target)]


def _windows(size: int, target: int) -> tuple[Tensor, int]:
    """Return the indices of adaptive pooling's windows, one window after another, and their common length.

    Shorter windows repeat their last index, which does not change the maximum.
    """
    spans = _spans(size, target)
    longest = max(end - start for start, end in spans)
    places = [min(start + step, end - 1) for start, end in spans for step in range(longest)]
    return torch.tensor(places), longest
