"""Evaluating one method: curves on validation and test, and the metrics the tables need, a row each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from ztw.evaluation.calibration import calibration, fit_temperatures, overthinking
from ztw.evaluation.curves import Costs, SplitPredictions, method_curves, offered_to, swept
from ztw.evaluation.metric_rows import Metric, metric_rows
from ztw.evaluation.metrics import at_budget, exit_accuracy, hindsight_improvability
from ztw.exits.rules import ExitRule, exit_rule
from ztw.exits.sweep import Curve, scored, simulate_exits
from ztw.exits.thresholds import at
from ztw.study.settings import EvaluationSettings, MethodSettings

# choices of thresholds whose parameter is an allowed loss of accuracy
FROM_ALLOWED_LOSS = ("allowed_loss", "risk_controlled")


Rules = dict[float | str, ExitRule]  # by budget


@dataclass(frozen=True)
class Evaluation:
    """What is known of a method in one cell.

    curves: a row a split and parameter; metrics: as `metric_rows`, NaN where a budget is
    infeasible; correct: "<protocol>@<budget>" -> uint8 (N,), which test samples it answers rightly
    there, and rules: protocol -> budget -> what it runs with, for the budgets that are feasible.
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
    """Sweep one method and pick its thresholds for every budget.

    validation: None where nothing is held out; protocols and thresholds then need none, and nothing is scaled
    by a temperature. costs: by counter, "ztw", and "published" where a protocol needs it. Protocol `held-out` picks
    on the validation split, `paper` and `published` on the test split, the last by the published counter; accuracy
    and cost are always the test split's.
    """
    correct: dict[str, Tensor] = {}
    rules: dict[str, Rules] = {}
    temperatures = None if validation is None else fit_temperatures(validation.logits, validation.labels)
    metrics = [metric_rows(_of_exits(test, costs["ztw"], temperatures))]
    for protocol in evaluation.protocols:
        unit = costs["published" if protocol == "published" else "ztw"]
        chooser = validation if protocol == "held-out" and validation is not None else test
        # how calibrated the answers at a budget are: of the first protocol, the one a reader looks at
        scale = temperatures if protocol == evaluation.protocols[0] else None
        found, answered, rules[protocol] = _at_budgets(chooser, test, unit, method, evaluation, scale)
        metrics.append(metric_rows(found, protocol))
        correct |= {f"{protocol}@{budget}": value for budget, value in answered.items()}
    curves = method_curves(validation, test, costs["ztw"], method, evaluation.points)
    return Evaluation(curves, pd.concat(metrics, ignore_index=True), correct, rules)


def _of_exits(test: SplitPredictions, unit: Costs, temperatures: Tensor | None) -> list[Metric]:
    """What each exit is worth if all samples left there, and how often the last one is a loss."""
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
    """Metrics of the test split at every budget and allowed loss, which samples are right there, and by which rule."""
    offered = offered_to(chooser, unit, method, evaluation.points)
    curve = swept(chooser, unit, method.rule, offered)
    on_test = curve if chooser is test else swept(test, unit, method.rule, offered)
    metrics: list[Metric] = []
    correct: dict[float | str, Tensor] = {}
    rules: Rules = {}
    picked = at_budget(curve, evaluation.budgets, unit.base)
    for budget, index in zip(evaluation.budgets, picked, strict=True):
        if index is None:
            found = [Metric(name, math.nan) for name in ("accuracy", "relative_cost", "parameter")]
        else:
            rules[budget] = at(method.rule, offered, index)
            answering, given = _answers(test.logits, rules[budget])
            correct[budget] = (given.argmax(-1) == test.labels).byte()
            found = _of_row(on_test, index, unit)
            if temperatures is not None:
                found += _calibration(given, test.labels, temperatures[answering])
        metrics += [metric._replace(budget=str(budget)) for metric in found]
    if method.thresholds in FROM_ALLOWED_LOSS and chooser is not test:
        metrics += _at_allowed_losses(test, on_test, unit, method.rule, evaluation)
    return metrics, correct, rules


def _of_row(curve: Curve, index: int, unit: Costs) -> list[Metric]:
    shares = enumerate(curve.exit_fraction[index].tolist(), 1)
    return [
        Metric("accuracy", float(curve.accuracy[index])),
        Metric("relative_cost", float(curve.cost[index] / unit.base)),
        Metric("parameter", float(curve.parameter[index])),
        *(Metric("exit_fraction", share, exit=exit) for exit, share in shares),
    ]


def _answers(logits: Tensor, rule: ExitRule) -> tuple[Tensor, Tensor]:
    """Which exit answers for each sample (N,), and what it says (N, C); logits: (K, N, C)."""
    _, answering = simulate_exits(logits, rule)
    return answering, logits[answering, torch.arange(len(answering))]


def _calibration(given: Tensor, labels: Tensor, temperatures: Tensor) -> list[Metric]:
    """Of the answers given (N, C), plain, and each scaled by the temperature (N,) of the exit that gave it."""
    plain = calibration(given[None], labels)
    scaled = calibration((given / temperatures[:, None])[None], labels)
    return [
        *(Metric(name, float(values[0])) for name, values in plain.items()),
        *(Metric(f"{name}_scaled", float(values[0])) for name, values in scaled.items() if name != "auroc"),
    ]


def _at_allowed_losses(
    test: SplitPredictions, curve: Curve, unit: Costs, rule: str, evaluation: EvaluationSettings
) -> list[Metric]:
    """What each allowed loss of accuracy cost on the test split; the allowed loss stands as the budget."""
    # of the last exit, or of who answers there
    full = scored(test.logits, test.labels, exit_rule(rule))[1][-1].double().mean()
    found = []
    for allowed in evaluation.allowed_losses:
        # from the cheapest to the most cautious: the first that allows no more
        index = int((curve.parameter <= allowed).nonzero()[0])
        loss, cost = float(full - curve.accuracy[index]), float(curve.cost[index] / unit.base)
        found.append(Metric("loss_at_allowed_loss", loss, str(allowed)))
        found.append(Metric("relative_cost_at_allowed_loss", cost, str(allowed)))
    return found


def rules_at_budgets(
    answers: SplitPredictions, unit: Costs, method: MethodSettings, evaluation: EvaluationSettings
) -> Rules:
    """The rule a method runs with at each feasible budget, thresholds chosen on these answers."""
    offered = offered_to(answers, unit, method, evaluation.points)
    picked = at_budget(swept(answers, unit, method.rule, offered), evaluation.budgets, unit.base)
    return {
        budget: at(method.rule, offered, index)
        for budget, index in zip(evaluation.budgets, picked, strict=True)
        if index is not None
    }
