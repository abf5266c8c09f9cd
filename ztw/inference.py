"""Early exits for real: what `EarlyExitNetwork.infer` does.

The batch that is carried through the network shrinks as samples leave. Taking them out costs a copy of
the activations, so that is done when enough have left to pay for it; until then they are carried along
and ignored.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ztw.ensembles import Running
from ztw.rules import ExitRule, State

if TYPE_CHECKING:
    from ztw.network import Answering, EarlyExitNetwork

# Take the samples that left out of the batch when they are this share of it.
WORTH_A_COPY = 0.05
# Blocks' outputs of at most so many bytes at once: larger ones come from the system page by page unless
# memory is kept, and much smaller ones leave the convolutions too little to do (measured from 4 to 32 MB).
PART_BYTES = 2**24


@dataclass(frozen=True)
class ExitResult:
    """What `infer` answers, in the order of its input.

    logits: float32 (N, classes) of the exit that answers for each sample (log-probabilities with an
    ensemble); exit_index: int64 (N,), where it left, 0 = the first exit.
    """

    logits: Tensor
    exit_index: Tensor


def phases(network: EarlyExitNetwork, device: torch.device) -> list[tuple[list[int], int]]:
    """Runs of exits, each with how many samples to carry through it at once.

    On a CPU so few that a block's output stays below PART_BYTES: deep blocks with their small outputs
    take more samples at once than early ones. On a GPU there is one phase without a limit.
    """
    exits = range(network.exits)
    if device.type != "cpu":
        return [(list(exits), sys.maxsize)]
    number = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    sizes = [number.itemsize * math.prod(shape) for shape in network.backbone.feature_shapes]
    sizes = list(accumulate(reversed(sizes), max))[::-1]  # the largest still to come: parts are only joined
    firsts = [0, *(block + 1 for block in network.placement)]  # the first block on the way to each exit
    limits = [max(1, PART_BYTES // sizes[min(block, len(sizes) - 1)]) for block in firsts]
    return [(list(run), limit) for limit, run in groupby(exits, key=limits.__getitem__)]


def exits_between_looks(device: torch.device) -> int:
    """How often the host looks at who has left: on a GPU each look waits for all queued work."""
    return 1 if device.type == "cpu" else 4


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """The given rows (int64) of x (N, ...), in the memory format x has."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


# The stages before an exit, and what answers there.
Step = tuple[Sequence[nn.Module], "Answering"]


def steps_of(network: EarlyExitNetwork) -> list[Step]:
    """The way through the network, exit by exit; looked up once, because a module's attributes are slow."""
    return [(segment, network.answering(exit)) for exit, segment in enumerate(network.segments())]


class _Part:
    """Samples carried through the network together, (n, ...) of everything that later exits need.

    rows: which samples of the whole batch these are, its size for those that have left already; gone: how
    many of these there are.
    """

    def __init__(self, network: EarlyExitNetwork, images: Tensor, rows: Tensor) -> None:
        self.hidden, self.rows, self.gone = images, rows, 0
        self.chained = network.mode.cascade or network.mode.additive
        self.previous: Tensor | None = None
        self.running = Running(network.ensemble, len(images), images.device) if network.ensemble else None
        self.state: State = ()
        self.best: State = ()  # score, answer of the most confident exit so far

    def advance(self, exit: int, step: Step, rule: ExitRule) -> tuple[Tensor, Tensor]:
        """Compute one exit and the stages before it: its score (n,) and its answer (n, C)."""
        segment, answering = step
        for stage in segment:
            self.hidden = stage(self.hidden)
        answer = answering(self.hidden, self.previous)
        if self.chained:
            self.previous = answer
        if self.running is not None:
            answer = self.running.add(exit, answer)
        score, self.state = rule.score(answer, self.state)
        if rule.best_answers:
            self.best = _better(self.best, (score, answer))
        return score, answer

    def keep(self, places: Tensor) -> None:
        """Carry only the samples at these places (int64) on."""
        self.hidden, self.rows, self.gone = pick(self.hidden, places), self.rows[places], 0
        if self.previous is not None:
            self.previous = self.previous[places]
        if self.running is not None:
            self.running.keep(places)
        self.state = tuple(item[places] for item in self.state)
        self.best = tuple(item[places] for item in self.best)

    def take_in(self, others: Sequence[_Part]) -> None:
        """Carry the samples of others too, which have passed the same exits."""
        parts = [self, *others]
        self.hidden = torch.cat([part.hidden for part in parts])
        self.rows, self.gone = torch.cat([part.rows for part in parts]), sum(part.gone for part in parts)
        if self.previous is not None:
            self.previous = torch.cat([part.previous for part in parts if part.previous is not None])
        if self.running is not None:
            self.running.take_in([part.running for part in others if part.running is not None])
        self.state = tuple(map(torch.cat, zip(*(part.state for part in parts), strict=True)))
        self.best = tuple(map(torch.cat, zip(*(part.best for part in parts), strict=True)))


def _better(best: State, new: State) -> State:
    """Of two (score (N,), answer (N, C)), each sample's with the larger score; the earlier one of equals."""
    if not best:
        return new
    wins = new[0] > best[0]
    return torch.where(wins, new[0], best[0]), torch.where(wins[:, None], new[1], best[1])


def _joined(parts: Sequence[_Part], size: int) -> list[_Part]:
    """The same samples in fewer parts, of `size` at most unless one was larger."""
    groups: list[list[_Part]] = []
    for part in parts:
        if groups and sum(len(other.rows) for other in [*groups[-1], part]) <= size:
            groups[-1].append(part)
        else:
            groups.append([part])
    for first, *others in groups:
        if others:
            first.take_in(others)
    return [group[0] for group in groups]


def infer(network: EarlyExitNetwork, images: Tensor, rule: ExitRule) -> ExitResult:
    """See `EarlyExitNetwork.infer`; network: in eval mode."""
    result = (_infer_one if len(images) == 1 else _infer_batch)(network, images, rule)
    if network.ensemble is None:
        return result
    return ExitResult(result.logits.log_softmax(-1), result.exit_index)  # the rules need no normalised answer


def _infer_one(network: EarlyExitNetwork, image: Tensor, rule: ExitRule) -> ExitResult:
    """A single sample needs no bookkeeping: it leaves, or it goes on.

    What `_Part.advance` does, written out: between two small convolutions every line costs.
    """
    hidden, previous = image, None
    running = Running(network.ensemble, 1, image.device) if network.ensemble is not None else None
    state: State = ()
    best: State = ()
    bounds = [*rule.bounds(network.exits).tolist(), -math.inf]
    for exit, (segment, answering) in enumerate(steps_of(network)):
        for stage in segment:
            hidden = stage(hidden)
        answer = previous = answering(hidden, previous)
        if running is not None:
            answer = running.add(exit, answer)
        score, state = rule.score(answer, state)
        if rule.best_answers:
            best = _better(best, (score, answer))
        if score.item() > bounds[exit]:  # a float's value in float64, as in `sweep`
            break
    if best and exit == network.exits - 1:
        answer = best[1]
    return ExitResult(answer.float(), torch.tensor([exit], device=image.device))


def _infer_batch(network: EarlyExitNetwork, images: Tensor, rule: ExitRule) -> ExitResult:
    """The parts of a batch go through a phase one after another, then on together as far as they fit."""
    plan = phases(network, images.device)
    whole = _Whole(network, images, rule)
    rows = torch.arange(len(images), device=images.device)
    pieces = zip(images.split(plan[0][1]), rows.split(plan[0][1]), strict=True)
    parts = [_Part(network, *piece) for piece in pieces]
    for exits, size in plan:
        parts = _joined(parts, size)
        for part in parts:
            whole.run(part, exits)
        parts = [part for part in parts if len(part.rows)]
    return ExitResult(whole.answers[:-1], whole.exit_index[:-1])


class _Whole:
    """The answers of a whole batch, which its parts fill in; a last row takes those of samples that have left."""

    def __init__(self, network: EarlyExitNetwork, images: Tensor, rule: ExitRule) -> None:
        self.nowhere, device, self.last = len(images), images.device, network.exits - 1
        self.answers = torch.empty(self.nowhere + 1, network.backbone.classes, device=device)
        self.exit_index = torch.full((self.nowhere + 1,), self.last, device=device)
        self.rule, self.bounds = rule, rule.bounds(network.exits).tolist()
        self.steps = steps_of(network)
        self.between = exits_between_looks(device)

    def run(self, part: _Part, exits: Sequence[int]) -> None:
        """Carry a part through some exits; it is left with the samples that go on."""
        for exit in exits:
            score, answer = part.advance(exit, self.steps[exit], self.rule)
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
                part.keep(staying)
