"""Early exits for real: what `EarlyExitNetwork.infer` does.

The batch that is carried through the network shrinks as samples leave. Taking them out costs a copy of
the activations, so that is done when enough have left to pay for it; until then they are carried along
and ignored.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ztw.ensembles import LOG_FLOOR
from ztw.rules import ExitRule, State

if TYPE_CHECKING:
    from ztw.network import EarlyExitNetwork

# Take the samples that left out of the batch when they are this share of it.
WORTH_A_COPY = 0.1
# Activations of this many bytes and more go through memory, at a price that early exits do not earn back.
PART_BYTES = 2**24


@dataclass(frozen=True)
class ExitResult:
    """What `infer` answers, in the order of its input.

    logits: float32 (N, classes) of the exit that answers for each sample (log-probabilities with an
    ensemble); exit_index: int64 (N,), where it left, 0 = the first exit.
    """

    logits: Tensor
    exit_index: Tensor


def part_size(network: EarlyExitNetwork, device: torch.device) -> int:
    """How many samples to carry at once: on a CPU so few that a block's output stays near the processor."""
    if device.type != "cpu":
        return sys.maxsize
    largest = max(math.prod(shape) for shape in network.backbone.feature_shapes)
    return max(1, PART_BYTES // (4 * largest))


def exits_between_looks(device: torch.device) -> int:
    """How often the host looks at who has left: on a GPU each look waits for all queued work."""
    return 1 if device.type == "cpu" else 4


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """The given rows (int64) of x (N, ...), in the memory format x has."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


class _Carried:
    """The samples still carried through the network, (n, ...) of everything that later exits need."""

    def __init__(self, network: EarlyExitNetwork, images: Tensor) -> None:
        self.network = network
        self.hidden = images
        self.previous: Tensor | None = None
        self.members: Tensor | None = None  # log-probabilities (K, n, C) of the exits so far
        if network.ensemble is not None:
            self.members = images.new_empty(
                network.exits, len(images), network.backbone.classes, dtype=torch.float32
            )
        self.state: State = ()
        self.best: tuple[Tensor, Tensor] | None = None  # score, answer of the most confident exit so far

    def advance(self, exit: int, rule: ExitRule) -> tuple[Tensor, Tensor]:
        """Compute one exit: its score (n,) and its answer (n, C)."""
        network = self.network
        self.previous = answer = network.exit_answer(exit, self.hidden, self.previous)
        if network.ensemble is not None and self.members is not None:
            torch.clamp(answer.log_softmax(-1), min=LOG_FLOOR, out=self.members[exit])
            answer = network.ensemble.scores(exit, self.members[: exit + 1])
        score, self.state = rule.score(answer, self.state)
        if rule.best_answers:
            self.best = _better(self.best, (score, answer))
        return score, answer

    def keep(self, rows: Tensor) -> None:
        """Carry only the given rows (int64) on."""
        assert self.previous is not None
        self.hidden, self.previous = pick(self.hidden, rows), self.previous[rows]
        if self.members is not None:
            self.members = self.members.index_select(1, rows)
        self.state = tuple(item[rows] for item in self.state)
        if self.best is not None:
            self.best = self.best[0][rows], self.best[1][rows]


def _better(best: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of two (score (N,), answer (N, C)), each sample's with the larger score; the earlier one of equals."""
    if best is None:
        return new
    wins = new[0] > best[0]
    return torch.where(wins, new[0], best[0]), torch.where(wins[:, None], new[1], best[1])


def infer(network: EarlyExitNetwork, images: Tensor, rule: ExitRule) -> ExitResult:
    """See `EarlyExitNetwork.infer`; network: in eval mode."""
    parts = images.split(part_size(network, images.device))
    if len(parts) > 1:
        results = [infer(network, part, rule) for part in parts]
        exit_index = torch.cat([result.exit_index for result in results])
        return ExitResult(torch.cat([result.logits for result in results]), exit_index)
    alone = len(images) == 1
    result = _infer_one(network, images, rule) if alone else _infer_batch(network, images, rule)
    if network.ensemble is None:
        return result
    return ExitResult(result.logits.log_softmax(-1), result.exit_index)  # the rules need no normalised answer


def _infer_one(network: EarlyExitNetwork, image: Tensor, rule: ExitRule) -> ExitResult:
    """A single sample needs no bookkeeping: it leaves, or it goes on."""
    carried, last = _Carried(network, image), network.exits - 1
    bounds = rule.bounds(network.exits).tolist()
    for exit, segment in enumerate(network.segments()):
        for stage in segment:
            carried.hidden = stage(carried.hidden)
        score, answer = carried.advance(exit, rule)
        if exit == last or score.item() > bounds[exit]:  # a float's value in float64, as in `sweep`
            break
    if exit == last and carried.best is not None:
        answer = carried.best[1]
    return ExitResult(answer.float(), torch.tensor([exit], device=image.device))


def _infer_batch(network: EarlyExitNetwork, images: Tensor, rule: ExitRule) -> ExitResult:
    count, device, last = len(images), images.device, network.exits - 1
    answers = torch.empty(count, network.backbone.classes, device=device)
    exit_index = torch.full((count,), last, device=device)
    rows = torch.arange(count, device=device)  # which samples are carried
    gone = torch.zeros(count, dtype=torch.bool, device=device)  # which of those have left already
    bounds = rule.bounds(network.exits).tolist()
    between = exits_between_looks(device)
    carried = _Carried(network, images)
    for exit, segment in enumerate(network.segments()):
        for stage in segment:
            carried.hidden = stage(carried.hidden)
        score, answer = carried.advance(exit, rule)
        if exit == last:
            answer = answer if carried.best is None else carried.best[1]
            answers[rows] = torch.where(gone[:, None], answers[rows], answer)
            break
        leaves = (score.double() > bounds[exit]) & ~gone
        if between == 1 and not leaves.any():
            continue
        answers[rows] = torch.where(leaves[:, None], answer, answers[rows])
        exit_index[rows] = torch.where(leaves, exit, exit_index[rows])
        gone = gone | leaves
        if exit % between:
            continue
        left = int(gone.sum())
        if left == len(rows):
            break
        if left and left >= WORTH_A_COPY * len(rows):
            stay = (~gone).nonzero().flatten()
            rows, gone = rows[stay], gone.new_zeros(len(stay))
            carried.keep(stay)
    return ExitResult(answers, exit_index)
