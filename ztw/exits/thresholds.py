"""The ways to choose thresholds on held-out data, in one table, THRESHOLDS.

Each one computes candidates, from the cheapest to the most expensive. A budget or an allowed loss selects one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from ztw.errors import ZtwError, unknown
from ztw.exits.fitted_base import FittedRule
from ztw.exits.logits import check_logits, class_labels
from ztw.exits.per_exit_thresholds import PerExit
from ztw.exits.rules import ExitRule, exit_rule, exit_scores, rule_name
from ztw.exits.sweep import departures, own_grid
from ztw.exits.threshold_base import (
    TIE,
    Candidates,
    HeldOut,
    RuleKind,
    ThresholdChoice,
    geometric,
    just_below,
    midway,
    prepare_held_out,
)

DELTA = 0.1  # probability, over draws of held-out data, that the guarantee of `risk_controlled` fails
NAMED = 20  # number of classes that an error names


def candidates(
    choice: str, logits: Tensor, labels: Tensor, cost: Tensor, rule: RuleKind, points: int = 1000
) -> Candidates:
    """Compute the candidates of an entry of THRESHOLDS, see `ThresholdChoice.candidates`."""
    if choice not in THRESHOLDS:
        raise unknown("way to choose thresholds", choice, THRESHOLDS)
    return THRESHOLDS[choice].candidates(logits, labels, cost, rule, points)


def at(rule: RuleKind, candidates: Candidates, index: int) -> ExitRule:
    """Return the rule with the thresholds of one candidate."""
    value = candidates.thresholds[index].tolist()
    return exit_rule(rule)(value)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Shared(ThresholdChoice):
    """One threshold for all exits, from the rule's own grid. `Candidates.parameter` is the threshold."""

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: RuleKind, points: int = 1000
    ) -> Candidates:
        """Return candidates (T,), about 2 * `points` of them."""
        kind = exit_rule(rule)
        logits, _, cost = check_logits(logits, labels, cost, increasing=not kind.single)
        grid = own_grid(kind, exit_scores(logits.detach().cpu(), kind), cost, points)
        return Candidates(grid, grid)


@dataclass(frozen=True)
class AllowedLoss(ThresholdChoice):
    """One threshold per exit for an allowed loss of accuracy eps (Berestizshevsky & Even 2019).

    delta_k(eps) = the smallest delta with acc_k(delta) >= max_delta acc_k(delta) - eps, where acc_k(delta) is the
    accuracy of exit k on all samples with confidence >= delta. `Candidates.parameter` is eps: 0, and `steps` geometric
    values up to 1. At eps = 1, every sample leaves at the first exit.

    The maximum is 1 if the most confident sample is classified correctly. For a small eps, a few samples may therefore
    decide the threshold.
    """

    steps: int = 100

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: RuleKind, points: int = 1000
    ) -> Candidates:
        """Return candidates (T, K - 1). One sort per exit serves all eps, O(K N log N)."""
        held_out = prepare_held_out("allowed_loss", logits, labels, cost, rule)
        eps = torch.cat([geometric(1.0, 1e-4, self.steps), torch.zeros(1, dtype=torch.float64)])
        bounds = eps.new_empty(len(eps), len(held_out.scores) - 1)
        for exit in range(bounds.shape[1]):
            bounds[:, exit] = _smallest_allowed(held_out.scores[exit], held_out.correct[exit], eps)
        return Candidates(eps, held_out.kind.thresholds(bounds))


def _smallest_allowed(score: Tensor, correct: Tensor, eps: Tensor) -> Tensor:
    """Return a bound for each eps (T,): scores exceed it if they are >= delta(eps). score, correct: (N,)."""
    score, order = score.sort(descending=True)
    # only different scores can be separated
    ends = torch.cat([score[1:] < score[:-1], torch.ones(1, dtype=torch.bool)]).nonzero().flatten()
    accuracy = correct[order].double().cumsum(0)[ends] / (ends + 1)
    bounds = just_below(score)[ends]
    bounds[:-1] = midway(score[ends[:-1]], score[ends[:-1] + 1])
    # the running maximum is sorted, so a binary search works
    still = accuracy.flip(0).cummax(0).values
    wanted = accuracy.max() - eps - TIE
    return bounds.flip(0)[torch.searchsorted(still, wanted)]


@dataclass(frozen=True)
class RiskControlled(ThresholdChoice):
    """One threshold for all exits, with a guarantee for the risk (Jazbec et al. 2024; Angelopoulos et al. 2021).

    A sample's loss is 1 if it leaves early with a wrong prediction, and its prediction without early exits is correct.
    The risk is the mean loss. The accuracy lost by early exits is at most the risk.

    P(risk <= eps) >= 1 - delta holds for ONE eps that is fixed beforehand, and for data drawn like the held-out
    samples, with the same shares of classes. There is no guarantee for an eps that is selected by its cost. The
    held-out samples must contain every class.

    Thresholds of a grid that does not depend on the data are tested in a fixed sequence, from the most expensive to
    the cheapest. Testing stops when the Clopper-Pearson upper bound of the risk, at level 1 - delta, exceeds eps. If
    the first threshold fails, no sample leaves early. `Candidates.parameter` is eps, in geometric steps.
    """

    delta: float = DELTA
    lowest: float = 1e-3
    highest: float = 0.5
    steps: int = 60

    def candidates(
        self, logits: Tensor, labels: Tensor, cost: Tensor, rule: RuleKind, points: int = 1000
    ) -> Candidates:
        """Return candidates (T,). One pass computes the risk at all thresholds."""
        refuse_fitted(exit_rule(rule))
        held_out = prepare_held_out("risk_controlled", logits, labels, cost, rule)
        _check_every_class(labels, held_out.num_classes)
        bounds = _fixed_grid(held_out, points)
        _, lost = departures(held_out.scores, ~held_out.correct & held_out.correct[-1], bounds)
        samples = held_out.scores.shape[1]
        upper = torch.ones_like(lost)  # 1 if every sample has a loss of 1
        some = lost < samples
        upper[some] = torch.from_numpy(
            betaincinv((lost[some] + 1).numpy(), (samples - lost[some]).numpy(), 1 - self.delta)
        )
        eps = geometric(self.highest, self.lowest, self.steps)
        # number of tests that pass before the first failure
        passed = torch.searchsorted(upper.cummax(0).values, eps, side="right")
        closed_first = torch.cat([bounds.new_full((1,), held_out.closed_bound), bounds])
        return Candidates(eps, held_out.kind.thresholds(closed_first[passed]))


def refuse_fitted(kind: type[ExitRule]) -> None:
    """Raise ZtwError for a rule that is fitted on the held-out samples: a guarantee needs other samples."""
    if issubclass(kind, FittedRule):
        raise ZtwError(
            f"thresholds 'risk_controlled': the rule {rule_name(kind)} is fitted on the held-out samples, so there is"
            " no guarantee; use another rule, or choose other thresholds"
        )


def _check_every_class(labels: Tensor, num_classes: int) -> None:
    seen = torch.bincount(class_labels(labels), minlength=num_classes)
    missing = [str(label) for label in (seen == 0).nonzero().flatten().tolist()]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise ZtwError(
            f"thresholds 'risk_controlled': no held-out sample of {len(missing)} of {num_classes} classes"
            f" ({', '.join(missing[:NAMED])}{more}), so there is no guarantee; hold out samples of every class, or"
            " choose other thresholds"
        )


def _fixed_grid(held_out: HeldOut, points: int) -> Tensor:
    """Return bounds from the best to the worst possible score. They depend only on the rule and on C."""
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
