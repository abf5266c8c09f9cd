"""Cross-fit exit rules: every sample is judged by thresholds and ensembles from the other half of the samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ztw.exits.ensemble_base import Ensemble
from ztw.exits.ensembles import fit_ensemble
from ztw.exits.rules import ExitRule, exit_rule
from ztw.exits.sweep import simulate_exits, sweep
from ztw.exits.threshold_base import TIE

LEAST = 20  # samples: ten per half


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples of an advice, without their inputs.

    Args:
        labels: int (N,).
        base: bool (N,), whether the model as it is classifies each sample correctly.
        aim: loss of accuracy against the model that thresholds aim at, in [0, 1).
        seed: seed of the halves.
    """

    labels: Tensor
    base: Tensor
    aim: float
    seed: int = 0

    def halves(self) -> list[tuple[Tensor, Tensor]]:
        """Return (samples to fit on, samples to judge by), twice: each half is both once."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.seed))
        first, second = (part.sort().values for part in order.tensor_split(2))
        return [(first, second), (second, first)]


@dataclass(frozen=True)
class CrossFitted:
    """A rule with its accuracy on samples that did not choose it.

    Attributes:
        correct: bool (N,), with the rule and the ensemble from the half that a sample is not in.
        macs: mean cost of a sample.
        fraction: float64 (K,), share of the samples that leave at each exit.
        rule, ensemble: from all samples.
    """

    correct: Tensor
    macs: float
    fraction: Tensor
    rule: ExitRule
    ensemble: Ensemble | None = None


def cross_fit(
    logits: Tensor,
    cost: Tensor,
    held_out: HeldOut,
    rule: str = "max_softmax",
    ensembled: bool = False,
    source: Tensor | None = None,
    chosen_on: Tensor | None = None,
) -> CrossFitted:
    """Choose thresholds, and optionally an ensemble, on each half, and judge them by the other half.

    Args:
        logits: (K, N, C) of single exits.
        cost: (K,), MACs of the exits, without an ensemble.
        held_out: the samples.
        rule: name of the exit rule.
        ensembled: whether to fit a geometric ensemble.
        source: logits (K, N, C) to fit the ensemble to; None = `logits`. Those of int8 take the ensemble of float32.
        chosen_on: logits (K, N, C) to choose thresholds on; None = `logits`.
    """
    source = logits if source is None else source
    chosen_on = logits if chosen_on is None else chosen_on
    correct = torch.zeros(len(held_out.labels), dtype=torch.bool)
    total, left = 0.0, torch.zeros(len(cost), dtype=torch.float64)
    for fit, judged in held_out.halves():
        found, ensemble = _fitted(chosen_on, cost, held_out, rule, source if ensembled else None, fit)
        outputs, costs = _outputs(logits[:, judged], cost, ensemble)
        exit_index, predicting = simulate_exits(outputs, found)
        answers = outputs[predicting, torch.arange(len(judged))].argmax(-1)
        correct[judged] = answers == held_out.labels[judged]
        total += float(costs[exit_index].sum())
        left += torch.bincount(exit_index, minlength=len(cost))
    every = torch.arange(len(correct))
    last, ensemble = _fitted(chosen_on, cost, held_out, rule, source if ensembled else None, every)
    return CrossFitted(correct, total / len(correct), left / len(correct), last, ensemble)


def with_or_without_ensemble(
    logits: Tensor, cost: Tensor, held_out: HeldOut, allowed_loss: float
) -> CrossFitted:
    """Cross-fit without and with an ensemble; return the better one, see `better`."""
    plain = cross_fit(logits, cost, held_out)
    return better(plain, cross_fit(logits, cost, held_out, ensembled=True), held_out, allowed_loss)


def better(first: CrossFitted, second: CrossFitted, held_out: HeldOut, allowed_loss: float) -> CrossFitted:
    """Return the cheaper one of those within the allowed loss, or else the more accurate one."""

    def order(one: CrossFitted) -> tuple[bool, float]:
        loss = float(held_out.base.double().mean() - one.correct.double().mean())
        within = loss <= allowed_loss + TIE
        return not within, one.macs if within else loss

    return min(first, second, key=order)


def _fitted(
    logits: Tensor, cost: Tensor, held_out: HeldOut, rule: str, source: Tensor | None, rows: Tensor
) -> tuple[ExitRule, Ensemble | None]:
    """Fit an ensemble, unless `source` is None, and choose the cheapest thresholds whose loss is at most the aim."""
    labels = held_out.labels[rows]
    ensemble = None if source is None else fit_ensemble(source[:, rows], labels)
    outputs, costs = _outputs(logits[:, rows], cost, ensemble)
    kind = exit_rule(rule)
    curve = sweep(outputs, labels, costs, kind)
    allowed = curve.accuracy >= float(held_out.base[rows].double().mean()) - held_out.aim - TIE
    if allowed.any():
        index = int(torch.where(allowed, curve.cost, torch.inf).argmin())
    else:
        index = int(curve.accuracy.argmax())
    return kind(curve.parameter[index].item()), ensemble  # type: ignore[call-arg]


def _outputs(logits: Tensor, cost: Tensor, ensemble: Ensemble | None) -> tuple[Tensor, Tensor]:
    """Return the logits (K, N, C) that decide, and the cost (K,) with the ensemble."""
    if ensemble is None:
        return logits, cost
    added = torch.tensor([ensemble.macs(exit) for exit in range(len(cost))], dtype=torch.float64)
    return ensemble(logits), cost + added.cumsum(0)
