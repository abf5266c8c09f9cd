"""Evaluate one method: its curves on validation and test split, and its metrics for the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from ztw.evaluation.calibration import calibration, overthinking
from ztw.evaluation.curves import Costs, SplitPredictions, fitted, method_curves, offered_to, swept
from ztw.evaluation.metric_rows import Metric, metric_rows
from ztw.evaluation.metrics import at_budget, exit_accuracy, hindsight_improvability
from ztw.exits.rules import ExitRule
from ztw.exits.sweep import Curve, scored, simulate_exits
from ztw.exits.temperatures import fit_temperatures
from ztw.exits.thresholds import at
from ztw.study.settings import EvaluationSettings, MethodSettings

# Kinds of thresholds whose parameter is an allowed loss of accuracy
FROM_ALLOWED_LOSS = ("allowed_loss", "risk_controlled")
Rules = dict[float | str, ExitRule]  # budget -> rule


@dataclass(frozen=True)
class Evaluation:
    """Results of a method in one cell.

    Args:
        curves: one row per split and parameter.
        metrics: rows as in `metric_rows`, NaN where a budget is infeasible.
        correct: "<protocol>@<budget>" -> uint8 (N,), whether each test sample is classified correctly.
        rules: protocol -> budget -> rule, for feasible budgets.
    """

    curves: pd.DataFrame
    metrics: pd.DataFrame
    correct: dict[str, Tensor]
    rules: dict[str, Rules]


def evaluate_method(
    validation: SplitPredictions | None,
    test: SplitPredictions,
    costs: Mapping[str, Costs],
    method: MethodSettings,
    evaluation: EvaluationSettings,
) -> Evaluation:
    """Sweep one method and choose its thresholds for every budget.

    Protocol `held-out` fits the rule and chooses thresholds on the validation split, `paper` and `published` on the
    test split.
    `published` counts cost by the published counter. Accuracy and cost are always measured on the test split.

    Args:
        validation: None if nothing is held out; then no protocol may need it, and there are no scaled metrics.
        costs: counter -> costs: "ztw", and "published" if a protocol needs it.
    """
    correct: dict[str, Tensor] = {}
    rules: dict[str, Rules] = {}
    temperatures = None if validation is None else fit_temperatures(validation.logits, validation.labels)
    metrics = [metric_rows(_of_exits(test, costs["ztw"], temperatures))]
    for protocol in evaluation.protocols:
        unit = costs["published" if protocol == "published" else "ztw"]
        chooser = validation if protocol == "held-out" and validation is not None else test
        # Calibration at budgets is reported for the first protocol only
        scale = temperatures if protocol == evaluation.protocols[0] else None
        found, right, rules[protocol] = _at_budgets(chooser, test, unit, method, evaluation, scale)
        metrics.append(metric_rows(found, protocol))
        correct |= {f"{protocol}@{budget}": value for budget, value in right.items()}
    curves = method_curves(validation, test, costs["ztw"], method, evaluation.points)
    return Evaluation(curves, pd.concat(metrics, ignore_index=True), correct, rules)


def _of_exits(test: SplitPredictions, unit: Costs, temperatures: Tensor | None) -> list[Metric]:
    """Compute overthinking, and the metrics of each exit if all samples left there."""
    per_exit = {
        "accuracy": exit_accuracy(test.logits, test.labels),
        "hindsight_improvability": hindsight_improvability(test.logits, test.labels),
        "relative_cost": unit.cost / unit.base,
        **({} if temperatures is None else {"temperature": temperatures}),
        **calibration(test.logits, test.labels, temperatures),
    }
    found = [
        Metric(name, value, exit=exit)
        for name, values in per_exit.items()
        for exit, value in enumerate(values.tolist(), 1)
    ]
    return [*found, Metric("overthinking", overthinking(test.logits, test.labels))]


def _at_budgets(
    chooser: SplitPredictions,
    test: SplitPredictions,
    unit: Costs,
    method: MethodSettings,
    evaluation: EvaluationSettings,
    temperatures: Tensor | None,
) -> tuple[list[Metric], dict[float | str, Tensor], Rules]:
    """Return the metrics on the test split, the correct samples and the rules, at every budget and allowed loss."""
    rule = fitted(method, chooser)
    offered = offered_to(chooser, unit, method, rule, evaluation.points)
    curve = swept(chooser, unit, rule, offered)
    on_test = curve if chooser is test else swept(test, unit, rule, offered)
    metrics: list[Metric] = []
    correct: dict[float | str, Tensor] = {}
    rules: Rules = {}
    picked = at_budget(curve, evaluation.budgets, unit.base)
    for budget, index in zip(evaluation.budgets, picked, strict=True):
        if index is None:
            found = [Metric(name, math.nan) for name in ("accuracy", "relative_cost", "parameter")]
        else:
            rules[budget] = at(rule, offered, index)
            source, predicted = _early_predictions(test.logits, rules[budget])
            correct[budget] = (predicted.argmax(-1) == test.labels).byte()
            found = _of_row(on_test, index, unit)
            if temperatures is not None:
                found += _calibration(predicted, test.labels, temperatures[source])
        metrics += [metric._replace(budget=str(budget)) for metric in found]
    if method.thresholds in FROM_ALLOWED_LOSS and chooser is not test:
        metrics += _at_allowed_losses(test, on_test, unit, rule, evaluation)
    return metrics, correct, rules


def _of_row(curve: Curve, index: int, unit: Costs) -> list[Metric]:
    shares = enumerate(curve.exit_fraction[index].tolist(), 1)
    return [
        Metric("accuracy", float(curve.accuracy[index])),
        Metric("relative_cost", float(curve.cost[index] / unit.base)),
        Metric("parameter", float(curve.parameter[index])),
        *(Metric("exit_fraction", share, exit=exit) for exit, share in shares),
    ]


def _early_predictions(logits: Tensor, rule: ExitRule) -> tuple[Tensor, Tensor]:
    """Return the exit that predicts each sample (N,), and its logits (N, C)."""
    _, source = simulate_exits(logits, rule)
    return source, logits[source, torch.arange(len(source))]


def _calibration(predicted: Tensor, labels: Tensor, temperatures: Tensor) -> list[Metric]:
    """Compute the calibration of logits (N, C), unscaled and scaled by their exits' temperatures (N,)."""
    plain = calibration(predicted[None], labels)
    scaled = calibration((predicted / temperatures[:, None])[None], labels)
    return [
        *(Metric(name, float(values[0])) for name, values in plain.items()),
        *(Metric(f"{name}_scaled", float(values[0])) for name, values in scaled.items() if name != "auroc"),
    ]


def _at_allowed_losses(
    test: SplitPredictions, curve: Curve, unit: Costs, rule: type[ExitRule], evaluation: EvaluationSettings
) -> list[Metric]:
    """Return loss and cost on the test split at each allowed loss, which stands in the column `budget`."""
    # Accuracy of the last exit by this rule, which may take another exit's prediction
    full = scored(test.logits, test.labels, rule)[1][-1].double().mean()
    found = []
    for allowed in evaluation.allowed_losses:
        # Rows are in order from the cheapest to the most cautious: take the first one within this allowed loss
        index = int((curve.parameter <= allowed).nonzero()[0])
        loss, cost = float(full - curve.accuracy[index]), float(curve.cost[index] / unit.base)
        found.append(Metric("loss_at_allowed_loss", loss, str(allowed)))
        found.append(Metric("relative_cost_at_allowed_loss", cost, str(allowed)))
    return found


def rules_at_budgets(
    predictions: SplitPredictions, unit: Costs, method: MethodSettings, evaluation: EvaluationSettings
) -> Rules:
    """Return the rule of a method at each feasible budget, fitted and with thresholds chosen on these predictions."""
    rule = fitted(method, predictions)
    offered = offered_to(predictions, unit, method, rule, evaluation.points)
    picked = at_budget(swept(predictions, unit, rule, offered), evaluation.budgets, unit.base)
    return {
        budget: at(rule, offered, index)
        for budget, index in zip(evaluation.budgets, picked, strict=True)
        if index is not None
    }
