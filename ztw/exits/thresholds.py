"""How thresholds are chosen from held-out data: one table, THRESHOLDS.

Every way answers with candidates from the cheapest to the most cautious; a budget then picks one of
them. A new way is one class and one entry in the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from ztw.errors import ZtwError, unknown
from ztw.exits.logits import check_logits, class_labels
from ztw.exits.per_exit_thresholds import PerExit
from ztw.exits.rules import ExitRule, exit_rule, exit_scores
from ztw.exits.sweep import departures
from ztw.exits.threshold_base import (
    TIE,
    Candidates,
    HeldOut,
    ThresholdChoice,
    geometric,
    just_below,
    midway,
    prepare_held_out,
)

DELTA = 0.1  # the guarantee of `risk_controlled` may fail on this share of the draws of held-out data
NAMED = 20  # classes that an error names


def candidates(
    choice: str, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
) -> Candidates:
    """Candidates of one entry of THRESHOLDS; see `ThresholdChoice.candidates`. ZtwError for an unknown name."""
    if choice not in THRESHOLDS:
        raise unknown("choice of thresholds", choice, THRESHOLDS)
    return THRESHOLDS[choice].candidates(logits, labels, cost, rule, points)


def at(rule: str, candidates: Candidates, index: int) -> ExitRule:
    """The rule object of one row of the candidates, for `infer` and `simulate_exits`."""
    value = candidates.thresholds[index].tolist()
    return exit_rule(rule)(value)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Shared(ThresholdChoice):
    """One threshold for all exits: the rule's own grid; parameter = the threshold."""

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
    ) -> Candidates:
        """Candidates (T,), about 2 * `points` of them."""
        kind = exit_rule(rule)
        logits = check_logits(logits, labels, cost).logits
        grid = kind.grid(exit_scores(logits.detach().cpu(), kind), points)
        return Candidates(grid, grid)


@dataclass(frozen=True)
class AllowedLoss(ThresholdChoice):
    """One threshold per exit from an allowed loss of accuracy eps (Berestizshevsky & Even 2019).

    delta_k(eps) = the smallest delta with acc_k(delta) >= max_delta acc_k(delta) - eps, where
    acc_k(delta) = the accuracy of exit k on all samples with confidence >= delta. parameter = eps,
    0 and `steps` geometric ones up to 1, at which everything leaves at the first exit.
    Trap: the maximum is 1 as soon as the single most confident sample is right, so a small eps may
    rest on a handful of samples; the definition is followed as it stands.
    """

    steps: int = 100

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
    ) -> Candidates:
        """Candidates (T, K - 1); sorting answers all eps at once, O(K N log N)."""
        held_out = prepare_held_out("allowed_loss", logits, labels, cost, rule)
        eps = torch.cat([geometric(1.0, 1e-4, self.steps), torch.zeros(1, dtype=torch.float64)])
        bounds = eps.new_empty(len(eps), len(held_out.scores) - 1)
        for exit in range(bounds.shape[1]):
            bounds[:, exit] = _smallest_allowed(held_out.scores[exit], held_out.correct[exit], eps)
        return Candidates(eps, held_out.kind.thresholds(bounds))


def _smallest_allowed(score: Tensor, correct: Tensor, eps: Tensor) -> Tensor:
    """Bounds (T,) that the samples with score >= delta(eps) pass and no others; score, correct: (N,)."""
    score, order = score.sort(descending=True)
    # delta can only part samples of different scores
    ends = torch.cat([score[1:] < score[:-1], torch.ones(1, dtype=torch.bool)]).nonzero().flatten()
    accuracy = correct[order].double().cumsum(0)[ends] / (ends + 1)
    bounds = just_below(score)[ends]
    bounds[:-1] = midway(score[ends[:-1]], score[ends[:-1] + 1])
    # the best accuracy at this delta or a smaller one falls as delta does, so it can be searched
    still = accuracy.flip(0).cummax(0).values
    wanted = accuracy.max() - eps - TIE
    return bounds.flip(0)[torch.searchsorted(still, wanted)]


@dataclass(frozen=True)
class RiskControlled(ThresholdChoice):
    """One threshold for all exits with a guarantee (Jazbec et al. 2024; Angelopoulos et al. 2021).

    A sample's loss at a threshold is 1 when its early answer is wrong and the answer of the full run
    (with `best_answers` the most confident exit's) is right; the mean loss, the risk, bounds the
    accuracy lost against always running to the end. For ONE eps fixed beforehand and data drawn like
    the held-out samples, P(risk <= eps) >= 1 - delta; choosing eps by its cost voids that. Held-out
    samples that lack a class say nothing of data that has it, and are refused; where rare classes have
    a larger share of them than of the data, the guarantee is for that larger share.
    Fixed-sequence testing over a grid that does not depend on the data: from the most cautious
    threshold downwards while the Clopper-Pearson upper bound of the risk at level 1 - delta stays
    <= eps; where not even the first passes, nobody leaves early. parameter = eps, geometric.
    """

    delta: float = DELTA
    lowest: float = 1e-3
    highest: float = 0.5
    steps: int = 60

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: str, points: int = 1000
    ) -> Candidates:
        """Candidates (T,); the risk at all thresholds comes from one pass."""
        held_out = prepare_held_out("risk_controlled", logits, labels, cost, rule)
        _check_every_class(labels, held_out.num_classes)
        bounds = _fixed_grid(held_out, points)
        _, lost = departures(held_out.scores, ~held_out.correct & held_out.correct[-1], bounds)
        samples = held_out.scores.shape[1]
        upper = torch.ones_like(lost)  # where every sample is lost
        some = lost < samples
        upper[some] = torch.from_numpy(
            betaincinv((lost[some] + 1).numpy(), (samples - lost[some]).numpy(), 1 - self.delta)
        )
        eps = geometric(self.highest, self.lowest, self.steps)
        # how many tests, from the first, pass without a failure in between
        passed = torch.searchsorted(upper.cummax(0).values, eps, side="right")
        closed_first = torch.cat([bounds.new_full((1,), held_out.closed_bound), bounds])
        return Candidates(eps, held_out.kind.thresholds(closed_first[passed]))


def _check_every_class(labels: Tensor, num_classes: int) -> None:
    """Raise ZtwError when the held-out samples lack a class: data that has it is not drawn like them."""
    seen = torch.bincount(class_labels(labels), minlength=num_classes)
    missing = [str(label) for label in (seen == 0).nonzero().flatten().tolist()]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise ZtwError(
            f"thresholds 'risk_controlled': no held-out sample of {len(missing)} of {num_classes} classes"
            f" ({', '.join(missing[:NAMED])}{more}), so nothing can be guaranteed; hold out samples of every class,"
            " or choose other thresholds"
        )


def _fixed_grid(held_out: HeldOut, points: int) -> Tensor:
    """Bounds from the most cautious to one that everything passes; they depend on the rule and C only."""
    width = held_out.kind.top - held_out.kind.worst(held_out.num_classes) + 1e-5
    even = torch.linspace(0, width, points, dtype=torch.float64)
    near_top = width * torch.logspace(-7, 0, points, dtype=torch.float64)
    return held_out.kind.top - torch.cat([even, near_top]).unique()


THRESHOLDS: dict[str, ThresholdChoice] = {
    "shared": Shared(),
    "per_exit": PerExit(),
    "allowed_loss": AllowedLoss(),
    "risk_controlled": RiskControlled(),
}
