"""Early exits for real: what `EarlyExitNetwork.infer` does, along the route that a network hands over.

The batch that is carried through the network shrinks as samples leave. Taking them out costs a copy of
the activations, so that is done when enough have left to pay for it; until then they are carried along
and ignored.
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

from ztw.exits.ensemble_base import Ensemble, IncrementalEnsemble
from ztw.exits.rules import ExitRule, State


@dataclass(frozen=True)
class ExitResult:
    """What `infer` answers, in the order of its input.

    logits: float32 (N, classes) of the exit that answers for each sample (log-probabilities with an
    ensemble); exit_index: int64 (N,), where it left, 0 = the first exit.
    """

    logits: Tensor
    exit_index: Tensor


# An exit's features (n, ...), the previous exit's logits (n, C) -> its logits float32 (n, C)
ExitFunction = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Route:
    """The way through a network, exit by exit.

    steps: for each of the K exits the stages since the one before, and what computes it; largest: (K,),
    numbers a sample's largest activation has from that exit's stages on; chained: whether an exit
    needs the previous one's logits; num_classes: C; ensemble: the network's, or None.
    """

    steps: Sequence[tuple[Sequence[nn.Module], ExitFunction]]
    largest: Sequence[int]
    chained: bool
    num_classes: int
    ensemble: Ensemble | None


@dataclass(frozen=True)
class Batching:
    """How a batch is carried through a network; it decides about speed, never about an answer.

    microbatch_bytes: size of a stage's output for the samples computed at once, None = no limit; copy_share:
    samples that left are taken out when they are at least this share of those carried; sync_every: the host
    looks at who has left after every so many exits.
    """

    microbatch_bytes: int | None
    copy_share: float = 0.05
    sync_every: int = 1


# Larger outputs come from the system page by page unless memory is kept, and much smaller ones leave the
# convolutions too little to do (measured from 4 to 32 MB).
CPU_BATCHING = Batching(microbatch_bytes=2**24)
# On a GPU the host waits for all queued work whenever it looks.
GPU_BATCHING = Batching(microbatch_bytes=None, sync_every=4)


def microbatch_plan(route: Route, microbatch_bytes: int | None) -> list[tuple[list[int], int]]:
    """Runs of exits, each with how many samples to carry through it at once.

    So few that a stage's output stays below `microbatch_bytes`: deep stages with their small outputs take more
    samples at once than early ones. Without a limit there is one run of all exits.
    """
    exits = range(len(route.steps))
    if microbatch_bytes is None:
        return [(list(exits), sys.maxsize)]
    number = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    limits = [max(1, microbatch_bytes // (number.itemsize * numbers)) for numbers in route.largest]
    return [(list(run), limit) for limit, run in groupby(exits, key=limits.__getitem__)]


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """The given rows (int64) of x (N, ...), in the memory format x has."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


class MicroBatch:
    """Samples carried through the network together, (n, ...) of everything that later exits need.

    rows: which samples of the batch these are, the batch's size for those that have left already; departed:
    how many of these there are.
    """

    def __init__(self, route: Route, images: Tensor, rows: Tensor) -> None:
        self.hidden, self.rows, self.departed = images, rows, 0
        self.route = route
        self.previous: Tensor | None = None
        self.ensemble = _start_ensemble(route, images)
        self.state: State = ()
        self.best: State = ()  # score, answer of the most confident exit so far

    def advance(self, exit: int, rule: ExitRule) -> tuple[Tensor, Tensor]:
        """Compute one exit and the stages before it: its score (n,) and its answer (n, C)."""
        stages, exit_function = self.route.steps[exit]
        for stage in stages:
            self.hidden = stage(self.hidden)
        answer = exit_function(self.hidden, self.previous)
        if self.route.chained:
            self.previous = answer
        if self.ensemble is not None:
            answer = self.ensemble.append(exit, answer)
        score, self.state = rule.score(answer, self.state)
        if rule.best_answers:
            self.best = better(self.best, (score, answer))
        return score, answer

    def select(self, places: Tensor) -> None:
        """Keep only the samples at these places (int64)."""
        self.hidden, self.rows, self.departed = pick(self.hidden, places), self.rows[places], 0
        if self.previous is not None:
            self.previous = self.previous[places]
        if self.ensemble is not None:
            self.ensemble.select(places)
        self.state = tuple(item[places] for item in self.state)
        self.best = tuple(item[places] for item in self.best)

    def join(self, others: Sequence[MicroBatch]) -> None:
        """Add the samples of others, which have passed the same exits."""
        every = [self, *others]
        self.hidden = torch.cat([one.hidden for one in every])
        self.rows, self.departed = torch.cat([one.rows for one in every]), sum(one.departed for one in every)
        if self.previous is not None:
            self.previous = torch.cat([one.previous for one in every if one.previous is not None])
        if self.ensemble is not None:
            self.ensemble.join([one.ensemble for one in others if one.ensemble is not None])
        self.state = tuple(map(torch.cat, zip(*(one.state for one in every), strict=True)))
        self.best = tuple(map(torch.cat, zip(*(one.best for one in every), strict=True)))


def better(best: State, new: State) -> State:
    """Of two (score (N,), answer (N, C)), each sample's with the larger score; the earlier one of equals."""
    if not best:
        return new
    wins = new[0] > best[0]
    return torch.where(wins, new[0], best[0]), torch.where(wins[:, None], new[1], best[1])


def _joined(microbatches: Sequence[MicroBatch], size: int) -> list[MicroBatch]:
    """The same samples in fewer microbatches, of `size` at most unless one was larger."""
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


def _start_ensemble(route: Route, images: Tensor) -> IncrementalEnsemble | None:
    """The route's ensemble, before its first exit."""
    return route.ensemble.start(len(images), images.device) if route.ensemble else None


def infer(route: Route, images: Tensor, rule: ExitRule, batching: Batching | None = None) -> ExitResult:
    """See `EarlyExitNetwork.infer`; route: of a network in eval mode; batching: None = the device's."""
    if len(images) == 1:
        result = _infer_one(route, images, rule)
    else:
        usual = CPU_BATCHING if images.device.type == "cpu" else GPU_BATCHING
        result = _infer_batch(route, images, rule, batching or usual)
    if route.ensemble is None:
        return result
    return ExitResult(result.logits.log_softmax(-1), result.exit_index)  # the rules need no normalised answer


def _infer_one(route: Route, image: Tensor, rule: ExitRule) -> ExitResult:
    """A single sample needs no bookkeeping: it leaves, or it goes on.

    What `MicroBatch.advance` does, written out: between two small convolutions every line costs.
    """
    hidden, previous = image, None
    ensemble = _start_ensemble(route, image)
    state: State = ()
    best: State = ()
    bounds = [*rule.bounds(len(route.steps)).tolist(), -math.inf]
    for exit, (stages, exit_function) in enumerate(route.steps):
        for stage in stages:
            hidden = stage(hidden)
        answer = previous = exit_function(hidden, previous)
        if ensemble is not None:
            answer = ensemble.append(exit, answer)
        score, state = rule.score(answer, state)
        if rule.best_answers:
            best = better(best, (score, answer))
        if score.item() > bounds[exit]:  # a float's value in float64, as in `sweep`
            break
    if best and exit == len(route.steps) - 1:
        answer = best[1]
    return ExitResult(answer.float(), torch.tensor([exit], device=image.device))


def _infer_batch(route: Route, images: Tensor, rule: ExitRule, batching: Batching) -> ExitResult:
    """Microbatches go through a run of exits one after another, then on together as far as they fit."""
    plan = microbatch_plan(route, batching.microbatch_bytes)
    result = BatchResult(route, images, rule, batching)
    rows = torch.arange(len(images), device=images.device)
    pieces = zip(images.split(plan[0][1]), rows.split(plan[0][1]), strict=True)
    microbatches = [MicroBatch(route, *piece) for piece in pieces]
    for exits, size in plan:
        microbatches = _joined(microbatches, size)
        for microbatch in microbatches:
            result.run(microbatch, exits)
        microbatches = [microbatch for microbatch in microbatches if len(microbatch.rows)]
    return ExitResult(result.answers[:-1], result.exit_index[:-1])


class BatchResult:
    """The answers of a batch, which its microbatches fill in; a spare last row takes what nobody asks for."""

    def __init__(self, route: Route, images: Tensor, rule: ExitRule, batching: Batching) -> None:
        self.spare, device, self.last = len(images), images.device, len(route.steps) - 1
        self.answers = torch.empty(self.spare + 1, route.num_classes, device=device)
        self.exit_index = torch.full((self.spare + 1,), self.last, device=device)
        self.rule, self.bounds = rule, rule.bounds(len(route.steps)).tolist()
        self.batching = batching

    def run(self, microbatch: MicroBatch, exits: Sequence[int]) -> None:
        """Carry a microbatch through some exits; it is left with the samples that go on."""
        sync_every = self.batching.sync_every
        for exit in exits:
            score, answer = microbatch.advance(exit, self.rule)
            if exit == self.last:
                self.answers.index_copy_(
                    0, microbatch.rows, microbatch.best[1] if microbatch.best else answer
                )
                break
            leaves = score.double() > self.bounds[exit]
            if microbatch.departed:
                leaves &= microbatch.rows < self.spare
            if sync_every == 1 and not leaves.any():
                continue
            places = torch.where(leaves, microbatch.rows, self.spare)
            self.answers.index_copy_(0, places, answer)
            self.exit_index.index_fill_(0, places, exit)
            microbatch.rows = torch.where(leaves, self.spare, microbatch.rows)
            if exit % sync_every == 0:
                self._drop_departed(microbatch)
                if not len(microbatch.rows):
                    break

    def _drop_departed(self, microbatch: MicroBatch) -> None:
        """Take the samples that left out of a microbatch, once they are enough to pay for the copy."""
        staying = (microbatch.rows < self.spare).nonzero()[:, 0]
        if not len(staying):
            microbatch.rows = microbatch.rows[:0]
            return
        microbatch.departed = len(microbatch.rows) - len(staying)
        if microbatch.departed and microbatch.departed >= self.batching.copy_share * len(microbatch.rows):
            microbatch.select(staying)
