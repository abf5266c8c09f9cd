"""Early-exit inference: the loop behind `EarlyExitNetwork.infer`.

The batch shrinks as samples leave. Removing samples copies the activations of the others. Samples that have left are
therefore computed and ignored until there are enough of them to pay for the copy.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ztw.batch import Batch, device_of, joined, pick, size_of, split
from ztw.exits.ensemble_base import Ensemble, IncrementalEnsemble
from ztw.exits.rules import ExitRule, State


@dataclass(frozen=True)
class ExitResult:
    """Result of `infer`, in the order of the samples.

    Attributes:
        logits: float32 (N, classes), from the exit that predicts each sample. Log-probabilities with an ensemble.
        exit_index: int64 (N,), the exit where each sample leaves, from 0.

    Example:
        >>> import torch, ztw
        >>> network = ztw.build_network(ztw.build_backbone("resnet8")).eval()
        >>> result = network.infer(torch.randn(4, 3, 32, 32), "max_softmax 0.9")
        >>> result.logits.argmax(-1).shape, result.exit_index.shape
        (torch.Size([4]), torch.Size([4]))
    """

    logits: Tensor
    exit_index: Tensor


# (what the exit's stage returned, the previous exit's logits (n, C) or None) -> logits float32 (n, C)
ExitFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Route:
    """A network as a sequence of exits.

    Args:
        steps: for each of the K exits, the stages between the previous exit and this one, and the function that
            computes the logits.
        largest: (K,), number of elements of a sample's largest stage output, from the exit's stages to the end.
        chained: whether exits need the logits of the previous exit.
        num_classes: C.
        ensemble: the network's ensemble, or None.
    """

    steps: Sequence[tuple[Sequence[nn.Module], ExitFunction]]
    largest: Sequence[int]
    chained: bool
    num_classes: int
    ensemble: Ensemble | None


@dataclass(frozen=True)
class Batching:
    """Settings for how `infer` splits a batch. They change the speed, never a prediction.

    Args:
        microbatch_bytes: largest stage output of a microbatch; None = no limit.
        copy_share: share of a microbatch that must have left before these samples are removed.
        sync_every: number of exits between two checks of which samples have left.
    """

    microbatch_bytes: int | None
    copy_share: float = 0.05
    sync_every: int = 1


# Larger outputs cause page faults, unless the allocator keeps freed memory. Much smaller ones make convolutions slow.
# Measured from 4 to 32 MB.
CPU_BATCHING = Batching(microbatch_bytes=2**24)
# On a GPU, every check waits for all queued work.
GPU_BATCHING = Batching(microbatch_bytes=None, sync_every=4)


def microbatch_plan(route: Route, microbatch_bytes: int | None) -> list[tuple[list[int], int]]:
    """Choose the number of samples per microbatch, for each group of consecutive exits.

    A stage's output stays below `microbatch_bytes`, so deep stages with small outputs get more samples.

    Returns:
        Pairs of (exits, number of samples).
    """
    exits = range(len(route.steps))
    if microbatch_bytes is None:
        return [(list(exits), sys.maxsize)]
    number = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    limits = [max(1, microbatch_bytes // (number.itemsize * numbers)) for numbers in route.largest]
    return [(list(run), limit) for limit, run in groupby(exits, key=limits.__getitem__)]


class MicroBatch:
    """Samples that run through the network together, with all activations and states that later exits need.

    Attributes:
        rows: (n,), index of each sample in the batch; the batch size for samples that have left.
        departed: number of samples that have left.
    """

    def __init__(self, route: Route, batch: Batch, rows: Tensor) -> None:
        self.hidden: Any = batch
        self.rows, self.departed = rows, 0
        self.route = route
        self.previous: Tensor | None = None
        self.ensemble = _start_ensemble(route, batch)
        self.state: State = ()
        self.best: State = ()  # scores and logits of the most confident exit so far

    def advance(self, exit: int, rule: ExitRule) -> tuple[Tensor, Tensor]:
        """Compute the next exit with its stages; return its scores (n,) and logits (n, C)."""
        stages, exit_function = self.route.steps[exit]
        for stage in stages:
            self.hidden = stage(self.hidden)
        logits = exit_function(self.hidden, self.previous)
        if self.route.chained:
            self.previous = logits
        if self.ensemble is not None:
            logits = self.ensemble.append(exit, logits)
        score, self.state = rule.score_at(exit, logits, self.state)
        if rule.best_answers:
            self.best = better(self.best, (score, logits))
        return score, logits

    def select(self, places: Tensor) -> None:
        """Keep only the samples at these indices (int64)."""
        self.hidden, self.rows, self.departed = pick(self.hidden, places), self.rows[places], 0
        if self.previous is not None:
            self.previous = self.previous[places]
        if self.ensemble is not None:
            self.ensemble.select(places)
        self.state = tuple(item[places] for item in self.state)
        self.best = tuple(item[places] for item in self.best)

    def join(self, others: Sequence[MicroBatch]) -> None:
        """Append the samples of other microbatches at the same exit."""
        every = [self, *others]
        self.hidden = joined([one.hidden for one in every])
        self.rows, self.departed = torch.cat([one.rows for one in every]), sum(one.departed for one in every)
        if self.previous is not None:
            self.previous = torch.cat([one.previous for one in every if one.previous is not None])
        if self.ensemble is not None:
            self.ensemble.join([one.ensemble for one in others if one.ensemble is not None])
        self.state = tuple(map(torch.cat, zip(*(one.state for one in every), strict=True)))
        self.best = tuple(map(torch.cat, zip(*(one.best for one in every), strict=True)))


def better(best: State, new: State) -> State:
    """Select for each sample the pair (score (N,), logits (N, C)) with the larger score; on a tie the first pair."""
    if not best:
        return new
    wins = new[0] > best[0]
    return torch.where(wins, new[0], best[0]), torch.where(wins[:, None], new[1], best[1])


def _joined(microbatches: Sequence[MicroBatch], size: int) -> list[MicroBatch]:
    """Merge small microbatches, up to `size` samples each."""
    groups: list[list[MicroBatch]] = []
    for microbatch in microbatches:
        if groups and sum(len(other.rows) for other in [*groups[-1], microbatch]) <= size:
            groups[-1].append(microbatch)
        else:
            groups.append([microbatch])
    for first, *others in groups:
        if others:
            first.join(others)
    return [group[0] for group in groups]


def _start_ensemble(route: Route, batch: Batch) -> IncrementalEnsemble | None:
    """Return the state of the route's ensemble before the first exit."""
    return route.ensemble.start(size_of(batch), device_of(batch)) if route.ensemble else None


def infer(route: Route, batch: Batch, rule: ExitRule, batching: Batching | None = None) -> ExitResult:
    """Classify with early exits, see `EarlyExitNetwork.infer`.

    Args:
        route: of a network in eval mode.
        batch: e.g. images (N, C, H, W).
        rule: the exit rule.
        batching: None = the default of the device.
    """
    if size_of(batch) == 1:
        result = _infer_one(route, batch, rule)
    else:
        usual = CPU_BATCHING if device_of(batch).type == "cpu" else GPU_BATCHING
        result = _infer_batch(route, batch, rule, batching or usual)
    if route.ensemble is None:
        return result
    # once at the end, because rules accept unnormalised logits
    return ExitResult(result.logits.log_softmax(-1), result.exit_index)


def _infer_one(route: Route, sample: Batch, rule: ExitRule) -> ExitResult:
    """Classify a single sample without bookkeeping.

    The loop duplicates code of `MicroBatch.advance`, because every extra call costs time between small convolutions.
    """
    hidden: Any = sample
    previous = None
    ensemble = _start_ensemble(route, sample)
    state: State = ()
    best: State = ()
    bounds = [*rule.bounds(len(route.steps)).tolist(), -math.inf]
    for exit, (stages, exit_function) in enumerate(route.steps):
        for stage in stages:
            hidden = stage(hidden)
        logits = previous = exit_function(hidden, previous)
        if ensemble is not None:
            logits = ensemble.append(exit, logits)
        score, state = rule.score_at(exit, logits, state)
        if rule.best_answers:
            best = better(best, (score, logits))
        if score.item() > bounds[exit]:  # compared in float64, as in `sweep`
            break
    if best and exit == len(route.steps) - 1:
        logits = best[1]
    return ExitResult(logits.float(), torch.tensor([exit], device=device_of(sample)))


def _infer_batch(route: Route, batch: Batch, rule: ExitRule, batching: Batching) -> ExitResult:
    """Run the microbatches through one group of exits after another, and merge them in between."""
    plan = microbatch_plan(route, batching.microbatch_bytes)
    result = BatchResult(route, batch, rule, batching)
    rows = torch.arange(size_of(batch), device=device_of(batch))
    pieces = zip(split(batch, plan[0][1]), rows.split(plan[0][1]), strict=True)
    microbatches = [MicroBatch(route, *piece) for piece in pieces]
    for exits, size in plan:
        microbatches = _joined(microbatches, size)
        for microbatch in microbatches:
            result.run(microbatch, exits)
        microbatches = [microbatch for microbatch in microbatches if len(microbatch.rows)]
    return ExitResult(result.logits[:-1], result.exit_index[:-1])


class BatchResult:
    """The results of a batch. An extra last row receives the logits of samples that have left already."""

    def __init__(self, route: Route, batch: Batch, rule: ExitRule, batching: Batching) -> None:
        self.spare, device, self.last = size_of(batch), device_of(batch), len(route.steps) - 1
        self.logits = torch.empty(self.spare + 1, route.num_classes, device=device)
        self.exit_index = torch.full((self.spare + 1,), self.last, device=device)
        self.rule, self.bounds = rule, rule.bounds(len(route.steps)).tolist()
        self.batching = batching

    def run(self, microbatch: MicroBatch, exits: Sequence[int]) -> None:
        """Run a microbatch through some exits; record and remove the samples that leave."""
        sync_every = self.batching.sync_every
        for exit in exits:
            score, logits = microbatch.advance(exit, self.rule)
            if exit == self.last:
                self.logits.index_copy_(0, microbatch.rows, microbatch.best[1] if microbatch.best else logits)
                break
            leaves = score.double() > self.bounds[exit]
            if microbatch.departed:
                leaves &= microbatch.rows < self.spare
            if sync_every == 1 and not leaves.any():
                continue
            places = torch.where(leaves, microbatch.rows, self.spare)
            self.logits.index_copy_(0, places, logits)
            self.exit_index.index_fill_(0, places, exit)
            microbatch.rows = torch.where(leaves, self.spare, microbatch.rows)
            if exit % sync_every == 0:
                self._drop_departed(microbatch)
                if not len(microbatch.rows):
                    break

    def _drop_departed(self, microbatch: MicroBatch) -> None:
        """Remove the samples that left, once there are enough of them to pay for the copy."""
        staying = (microbatch.rows < self.spare).nonzero()[:, 0]
        if not len(staying):
            microbatch.rows = microbatch.rows[:0]
            return
        microbatch.departed = len(microbatch.rows) - len(staying)
        if microbatch.departed and microbatch.departed >= self.batching.copy_share * len(microbatch.rows):
            microbatch.select(staying)
