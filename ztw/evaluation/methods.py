"""Evaluating one method: curves on validation and test, and the flat metrics the tables need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ztw.evaluation.calibration import calibration, fit_temperatures, overthinking
from ztw.evaluation.costs import macs
from ztw.evaluation.metrics import at_budget, exit_accuracy, hindsight_improvability
from ztw.exits.rules import ExitRule, exit_rule
from ztw.exits.sweep import Curve, decide, scored, sweep
from ztw.exits.thresholds import Candidates, at, candidates
from ztw.models.network import EarlyExitNetwork
from ztw.models.operations import backbone_macs

Settings = Mapping[str, Any]
Metrics = dict[str, float]
PROTOCOLS = ("held-out", "paper", "published")
# choices of thresholds whose parameter is an allowed loss of accuracy
FROM_ALLOWED_LOSS = ("allowed_loss", "risk_controlled")


@dataclass(frozen=True)
class Answers:
    """What one method predicts on one split: logits (K, N, C), single exits or ensembled; labels (N,)."""

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Costs:
    """cost: (K,) cumulative, of leaving at each exit; base: of the backbone alone, in the same unit."""

    cost: Tensor
    base: float


@dataclass(frozen=True)
class Evaluation:
    """What is known of a method in one cell.

    rows: the curves; metrics: by name; correct: "<protocol>@<budget>" -> uint8 (N,), which test
    samples it answers rightly there, for the budgets that are feasible.
    """

    rows: pd.DataFrame
    metrics: Metrics
    correct: dict[str, Tensor]


def evaluate_method(
    validation: Answers,
    test: Answers,
    costs: Mapping[str, Costs],
    rule: str,
    choice: str,
    evaluation: Settings,
) -> Evaluation:
    """Sweep one method and pick its thresholds for every budget.

    costs: "macs", and "paper_ops" where a protocol wants it; rule: a name of RULES; choice: of
    THRESHOLDS; evaluation: the config's section. Protocol `held-out` picks on the validation split,
    `paper` and `published` on the test split, the last by the published operation counter; accuracy
    and cost are always the test split's.
    """
    metrics: Metrics = {}
    correct: dict[str, Tensor] = {}
    temperatures = fit_temperatures(validation.logits, validation.labels)
    for protocol in evaluation["protocols"]:
        unit = costs["paper_ops" if protocol == "published" else "macs"]
        chooser = validation if protocol == "held-out" else test
        # how calibrated the answers at a budget are: of the first protocol, the one a reader looks at
        scale = temperatures if protocol == evaluation["protocols"][0] else None
        found, answered = _at_budgets(chooser, test, unit, rule, choice, scale, evaluation)
        metrics |= {f"{protocol}/{name}": value for name, value in found.items()}
        correct |= {f"{protocol}@{budget}": value for budget, value in answered.items()}
    unit = costs["macs"]
    per_exit = {
        "accuracy": exit_accuracy(test.logits, test.labels),
        "hindsight_improvability": hindsight_improvability(test.logits, test.labels),
        "relative_cost": unit.cost / unit.base,
        "temperature": temperatures,
        **calibration(test.logits, test.labels, temperatures),
    }
    for name, values in per_exit.items():
        metrics |= _per_exit(name, values)
    metrics["overthinking"] = overthinking(test.logits, test.labels)
    rows = _curves(validation, test, unit, rule, choice, evaluation["points"])
    return Evaluation(rows, metrics, correct)


def _at_budgets(
    chooser: Answers,
    test: Answers,
    unit: Costs,
    rule: str,
    choice: str,
    temperatures: Tensor | None,
    evaluation: Settings,
) -> tuple[Metrics, dict[float | str, Tensor]]:
    """Metrics of the test split at every budget and allowed loss, and which samples are right there."""
    offered = candidates(choice, chooser.logits, chooser.labels, unit.cost, rule, points=evaluation["points"])
    curve = _sweep(chooser, unit, rule, offered)
    on_test = curve if chooser is test else _sweep(test, unit, rule, offered)
    metrics: Metrics = {}
    correct = {}
    for budget, index in zip(
        evaluation["budgets"], at_budget(curve, evaluation["budgets"], unit.base), strict=True
    ):
        if index is None:
            found = dict.fromkeys(("accuracy", "relative_cost", "parameter"), math.nan)
        else:
            found, correct[budget] = _at(test, on_test, index, unit, at(rule, offered, index), temperatures)
        metrics |= {f"{name}_at_{budget}": value for name, value in found.items()}
    if choice in FROM_ALLOWED_LOSS and chooser is not test:
        # of the last exit, or of who answers there
        whole = scored(test.logits, test.labels, exit_rule(rule))[1][-1].double().mean()
        for allowed in evaluation["allowed_losses"]:
            # from the cheapest to the most cautious: the first that allows no more
            index = int((on_test.parameter <= allowed).nonzero()[0])
            metrics[f"accuracy_loss_allowed_{allowed}"] = float(whole - on_test.accuracy[index])
            metrics[f"relative_cost_allowed_{allowed}"] = float(on_test.cost[index] / unit.base)
    return metrics, correct


def _sweep(answers: Answers, unit: Costs, rule: str, offered: Candidates) -> Curve:
    return sweep(
        answers.logits,
        answers.labels,
        unit.cost,
        rule,
        offered.thresholds,
        reported=offered.parameter,
    )


def _at(
    test: Answers, curve: Curve, index: int, unit: Costs, rule: ExitRule, temperatures: Tensor | None
) -> tuple[Metrics, Tensor]:
    """Metrics of one row of a curve, and which samples are right there (N,)."""
    _, answering = decide(test.logits, rule)
    given = test.logits[answering, torch.arange(len(answering))]  # (N, C)
    found = {
        "accuracy": curve.accuracy[index],
        "relative_cost": curve.cost[index] / unit.base,
        "parameter": curve.parameter[index],
        **{f"exit_fraction_{k}": share for k, share in enumerate(curve.exit_fraction[index], 1)},
    }
    if temperatures is not None:
        # each answer scaled by the temperature of the exit that gave it
        plain, scaled = (
            calibration(logits[None], test.labels)
            for logits in (given, given / temperatures[answering, None])
        )
        found |= {name: values[0] for name, values in plain.items()}
        found |= {f"{name}_scaled": values[0] for name, values in scaled.items() if name != "auroc"}
    correct = (given.argmax(-1) == test.labels).byte()
    return {name: float(value) for name, value in found.items()}, correct


def _curves(
    validation: Answers, test: Answers, unit: Costs, rule: str, choice: str, points: int
) -> pd.DataFrame:
    """The curves of both splits as rows; thresholds from the validation split, shared ones from both."""
    offered = candidates(choice, validation.logits, validation.labels, unit.cost, rule, points=points)
    on_validation = _sweep(validation, unit, rule, offered)
    if choice == "shared":
        own = candidates(choice, test.logits, test.labels, unit.cost, rule, points=points)
        both = torch.cat([offered.thresholds, own.thresholds]).unique()
        both = _in_order(both, offered.thresholds)
        offered = Candidates(both, both)
    on_test = _sweep(test, unit, rule, offered)
    splits = (("validation", on_validation), ("test", on_test))
    return pd.concat([_rows(curve, split, unit.base) for split, curve in splits])


def _in_order(parameters: Tensor, like: Tensor) -> Tensor:
    """Parameters from the cheapest to the most cautious, as the rule's own grid runs."""
    return parameters.flip(0) if len(like) > 1 and like[0] > like[-1] else parameters


def _per_exit(name: str, values: Tensor) -> Metrics:
    return {f"exit_{k}/{name}": value for k, value in enumerate(values.tolist(), 1)}


def _rows(curve: Curve, split: str, base_cost: float) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "split": split,
        "parameter": curve.parameter.numpy(),
        "accuracy": curve.accuracy.numpy(),
        "cost": curve.cost.numpy(),
        "relative_cost": (curve.cost / base_cost).numpy(),
    }
    for k in range(curve.exit_fraction.shape[1]):
        columns[f"exit_fraction_{k + 1}"] = curve.exit_fraction[:, k].numpy()
    return pd.DataFrame(columns)


def label(rows: pd.DataFrame, cell: Mapping[str, Any], method: str) -> pd.DataFrame:
    """The rows with the cell and the method in front."""
    names = {"dataset": cell["dataset"], "arch": cell["arch"], "seed": int(cell["seed"]), "method": method}
    for position, (name, value) in enumerate(names.items()):
        rows.insert(position, name, value)
    return rows


def rules_at_budgets(
    network: EarlyExitNetwork, logits: Tensor, labels: Tensor, method: Settings, evaluation: Settings
) -> dict[float | str, ExitRule]:
    """The rule a method runs with at each feasible budget, thresholds chosen on these logits (K, N, C)."""
    cost, budgets = macs(network), evaluation["budgets"]
    choice, name = method["thresholds"], method["rule"]
    offered = candidates(choice, logits, labels, cost, name, evaluation["points"])
    curve = sweep(logits, labels, cost, name, offered.thresholds, reported=offered.parameter)
    picked = at_budget(curve, budgets, backbone_macs(network.backbone))
    return {
        budget: at(name, offered, index)
        for budget, index in zip(budgets, picked, strict=True)
        if index is not None
    }
