"""Compute the curves of a method: accuracy against cost as the threshold varies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ztw.exits.rules import ExitRule, fit_rule
from ztw.exits.sweep import Curve, sweep
from ztw.exits.thresholds import Candidates, candidates
from ztw.study.layout import Cell
from ztw.study.settings import MethodSettings


@dataclass(frozen=True)
class SplitPredictions:
    """Predictions of a method on a split: logits (K, N, C) of single or ensembled exits, and labels int64 (N,)."""

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Costs:
    """Costs in one unit: `cost` (K,) up to each exit, and `base`, the cost of the backbone alone."""

    cost: Tensor
    base: float


def fitted(method: MethodSettings, chooser: SplitPredictions) -> type[ExitRule]:
    """Return the class of a method's rule, fitted on the split that chooses its thresholds."""
    return fit_rule(chooser.logits, chooser.labels, method.rule)


def offered_to(
    predictions: SplitPredictions, unit: Costs, method: MethodSettings, rule: type[ExitRule], points: int
) -> Candidates:
    """Return the candidate thresholds of a method with its rule from `fitted`, chosen on one split."""
    if len(predictions.logits) == 1:  # a static network has no thresholds
        only = torch.zeros(1, dtype=torch.float64)
        return Candidates(only, only)
    return candidates(method.thresholds, predictions.logits, predictions.labels, unit.cost, rule, points)


def swept(predictions: SplitPredictions, unit: Costs, rule: type[ExitRule], offered: Candidates) -> Curve:
    """Return the curve of the candidate thresholds; its parameter is the parameter of the candidates."""
    curve = sweep(predictions.logits, predictions.labels, unit.cost, rule, offered.thresholds)
    return replace(curve, parameter=offered.parameter)


def method_curves(
    validation: SplitPredictions | None,
    test: SplitPredictions,
    unit: Costs,
    method: MethodSettings,
    points: int,
) -> pd.DataFrame:
    """Return the curves of the validation and test splits as rows.

    The validation split fits the rule and gives the thresholds. The test curve also has shared thresholds of the test
    split.
    If nothing is held out, only the test split has a curve.
    """
    rule = fitted(method, test if validation is None else validation)
    if validation is None:
        return _rows(swept(test, unit, rule, offered_to(test, unit, method, rule, points)), "test", unit.base)
    offered = offered_to(validation, unit, method, rule, points)
    on_validation = swept(validation, unit, rule, offered)
    if method.thresholds == "shared":
        own = offered_to(test, unit, method, rule, points)
        both, like = torch.cat([offered.thresholds, own.thresholds]).unique(), offered.thresholds
        if (
            len(like) > 1 and like[0] > like[-1]
        ):  # in the order of the rule's grid: from the cheapest to the most cautious
            both = both.flip(0)
        offered = Candidates(both, both)
    on_test = swept(test, unit, rule, offered)
    splits = (("validation", on_validation), ("test", on_test))
    return pd.concat([_rows(curve, split, unit.base) for split, curve in splits], ignore_index=True)


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


def label(rows: pd.DataFrame, cell: Cell, method: str) -> pd.DataFrame:
    """Add the columns of the cell and the method before the others."""
    named = rows.assign(dataset=cell.dataset, arch=cell.arch, seed=cell.seed, method=method)
    return named[["dataset", "arch", "seed", "method", *rows.columns]]
