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

from ztw.exits.ensembles import Ensemble, IncrementalEnsemble
from ztw.exits.rules import ExitRule, State

# Take the samples that left out of the batch when they are this share of it.
WORTH_A_COPY = 0.05
# Blocks' outputs of at most so many bytes at once: larger ones come from the system page by page unless
# memory is kept, and much smaller ones leave the convolutions too little to do (measured from 4 to 32 MB).
MICROBATCH_BYTES = 2**24


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
    needs the previous one's logits; classes; ensemble: the network's, or None.
    """

    steps: Sequence[tuple[Sequence[nn.Module], ExitFunction]]
    largest: Sequence[int]
    chained: bool
    classes: int
    ensemble: Ensemble | None


def microbatch_plan(route: Route, device: torch.device) -> list[tuple[list[int], int]]:
    """Runs of exits, each with how many samples to carry through it at once.

    On a CPU so few that a block's output stays below MICROBATCH_BYTES: deep blocks with their small outputs
    take more samples at once than early ones. On a GPU there is one run of exits without a limit.
    """
    exits = range(len(route.steps))
    if device.type != "cpu":
        return [(list(exits), sys.maxsize)]
    number = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    limits = [max(1, MICROBATCH_BYTES // (number.itemsize * numbers)) for numbers in route.largest]
    return [(list(run), limit) for limit, run in groupby(exits, key=limits.__getitem__)]


def exits_between_looks(device: torch.device) -> int:
    """How often the host looks at who has left: on a GPU each look waits for all queued work."""
    return 1 if device.type == "cpu" else 4


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """The given rows (int64) of x (N, ...), in the memory format x has."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


class MicroBatch:
    """Samples carried through the network together, (n, ...) of everything that later exits need.

    rows: which samples of the whole batch these are, its size for those that have left already; gone: how
    many of these there are.
    """

    def __init__(self, route: Route, images: Tensor, rows: Tensor) -> None:
        self.hidden, self.rows, self.gone = images, rows, 0
        self.route = route
        self.previous: Tensor | None = None
        self.running = _start_ensemble(route, images)
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
        if self.running is not None:
            answer = self.running.append(exit, answer)
        score, self.state = rule.score(answer, self.state)
        if rule.best_answers:
            self.best = _better(self.best, (score, answer))
        return score, answer

    def select(self, places: Tensor) -> None:
        """Carry only the samples at these places (int64) on."""
        self.hidden, self.rows, self.gone = pick(self.hidden, places), self.rows[places], 0
        if self.previous is not None:
            self.previous = self.previous[places]
        if self.running is not None:
            self.running.select(places)
        self.state = tuple(item[places] for item in self.state)
        self.best = tuple(item[places] for item in self.best)

    def join(self, others: Sequence[MicroBatch]) -> None:
        """Carry the samples of others too, which have passed the same exits."""
        parts = [self, *others]
        self.hidden = torch.cat([part.hidden for part in parts])
        self.rows, self.gone = torch.cat([part.rows for part in parts]), sum(part.gone for part in parts)
        if self.previous is not None:
            self.previous = torch.cat([part.previous for part in parts if part.previous is not None])
        if self.running is not None:
            self.running.join([part.running for part in others if part.running is not None])
        self.state = tuple(map(torch.cat, zip(*(part.state for part in parts), strict=True)))
        self.best = tuple(map(torch.cat, zip(*(part.best for part in parts), strict=True)))


def _better(best: State, new: State) -> State:
    """Of two (score (N,), answer (N, C)), each sample's with the larger score; the earlier one of equals."""
    if not best:
        return new
    wins = new[0] > best[0]
    return torch.where(wins, new[0], best[0]), torch.where(wins[:, None], new[1], best[1])


def _joined(parts: Sequence[MicroBatch], size: int) -> list[MicroBatch]:
    """The same samples in fewer microbatches, of `size` at most unless one was larger."""
    groups: list[list[MicroBatch]] = []
    for part in parts:
        if groups and sum(len(other.rows) for other in [*groups[-1], part]) <= size:
            groups[-1].append(part)
        else:
            groups.append([part])
    for first, *others in groups:
        if others:
            first.join(others)
    return [group[0] for group in groups]


def _start_ensemble(route: Route, images: Tensor) -> IncrementalEnsemble | None:
    """The route's ensemble, before its first exit."""
    return IncrementalEnsemble(route.ensemble, len(images), images.device) if route.ensemble else None


def infer(route: Route, images: Tensor, rule: ExitRule) -> ExitResult:
    """See `EarlyExitNetwork.infer`; route: of a network in eval mode."""
    result = (_infer_one if len(images) == 1 else _infer_batch)(route, images, rule)
    if route.ensemble is None:
        return result
    return ExitResult(result.logits.log_softmax(-1), result.exit_index)  # the rules need no normalised answer


def _infer_one(route: Route, image: Tensor, rule: ExitRule) -> ExitResult:
    """A single sample needs no bookkeeping: it leaves, or it goes on.

    What `MicroBatch.advance` does, written out: between two small convolutions every line costs.
    """
    hidden, previous = image, None
    running = _start_ensemble(route, image)
    state: State = ()
    best: State = ()
    bounds = [*rule.bounds(len(route.steps)).tolist(), -math.inf]
    for exit, (stages, exit_function) in enumerate(route.steps):
        for stage in stages:
            hidden = stage(hidden)
        answer = previous = exit_function(hidden, previous)
        if running is not None:
            answer = running.append(exit, answer)
        score, state = rule.score(answer, state)
        if rule.best_answers:
            best = _better(best, (score, answer))
        if score.item() > bounds[exit]:  # a float's value in float64, as in `sweep`
            break
    if best and exit == len(route.steps) - 1:
        answer = best[1]
    return ExitResult(answer.float(), torch.tensor([exit], device=image.device))


def _infer_batch(route: Route, images: Tensor, rule: ExitRule) -> ExitResult:
    """Microbatches go through a run of exits one after another, then on together as far as they fit."""
    plan = microbatch_plan(route, images.device)
    result = BatchResult(route, images, rule)
    rows = torch.arange(len(images), device=images.device)
    pieces = zip(images.split(plan[0][1]), rows.split(plan[0][1]), strict=True)
    parts = [MicroBatch(route, *piece) for piece in pieces]
    for exits, size in plan:
        parts = _joined(parts, size)
        for part in parts:
            result.run(part, exits)
        parts = [part for part in parts if len(part.rows)]
    return ExitResult(result.answers[:-1], result.exit_index[:-1])


class BatchResult:
    """The answers of a batch, which its microbatches fill in; a last row takes those of samples that have left."""

    def __init__(self, route: Route, images: Tensor, rule: ExitRule) -> None:
        self.nowhere, device, self.last = len(images), images.device, len(route.steps) - 1
        self.answers = torch.empty(self.nowhere + 1, route.classes, device=device)
        self.exit_index = torch.full((self.nowhere + 1,), self.last, device=device)
        self.rule, self.bounds = rule, rule.bounds(len(route.steps)).tolist()
        self.between = exits_between_looks(device)

    def run(self, part: MicroBatch, exits: Sequence[int]) -> None:
        """Carry a microbatch through some exits; it is left with the samples that go on."""
        for exit in exits:
            score, answer = part.advance(exit, self.rule)
            if exit == self.last:
                self.answers.index_copy_(0, part.rows, part.best[1] if part.best else answer)
                break
            leaves = score.double() > self.bounds[exit]
            if part.gone:
                leaves &= part.rows < self.nowhere
            if self.between == 1 and not leaves.any():
                continue
            places = torch.where(leaves, part.rows, self.nowhere)
            self.answers.index_copy_(0, places, answer)
            self.exit_index.index_fill_(0, places, exit)
            part.rows = torch.where(leaves, self.nowhere, part.rows)
            if exit % self.between:
                continue
            staying = (part.rows < self.nowhere).nonzero()[:, 0]
            if not len(staying):
                part.rows = part.rows[:0]
                break
            part.gone = len(part.rows) - len(staying)
            if part.gone and part.gone >= WORTH_A_COPY * len(part.rows):
                part.select(staying)
