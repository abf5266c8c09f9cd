"""A method's curves: what it predicts, what its exits cost, and how accuracy and cost go together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ztw.exits.sweep import Curve, sweep
from ztw.exits.thresholds import Candidates, candidates
from ztw.study.layout import Cell
from ztw.study.settings import MethodSettings


@dataclass(frozen=True)
class SplitPredictions:
    """What one method predicts on one split: logits (K, N, C), single exits or ensembled; labels (N,)."""

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Costs:
    """cost: (K,) cumulative, of leaving at each exit; base: of the backbone alone, in the same unit."""

    cost: Tensor
    base: float


def offered_to(answers: SplitPredictions, unit: Costs, method: MethodSettings, points: int) -> Candidates:
    """The thresholds a method may run with, as chosen on one split."""
    if len(answers.logits) == 1:  # a static network has none
        only = torch.zeros(1, dtype=torch.float64)
        return Candidates(only, only)
    return candidates(method.thresholds, answers.logits, answers.labels, unit.cost, method.rule, points)


def swept(answers: SplitPredictions, unit: Costs, rule: str, offered: Candidates) -> Curve:
    """The curve of the thresholds offered, by the parameter they were chosen by."""
    curve = sweep(answers.logits, answers.labels, unit.cost, rule, offered.thresholds)
    return replace(curve, parameter=offered.parameter)


def method_curves(
    validation: SplitPredictions | None,
    test: SplitPredictions,
    unit: Costs,
    method: MethodSettings,
    points: int,
) -> pd.DataFrame:
    """The curves of both splits as rows; thresholds from the validation split, shared ones from both.

    Where nothing is held out: the curve of the test split alone.
    """
    if validation is None:
        return _rows(
            swept(test, unit, method.rule, offered_to(test, unit, method, points)), "test", unit.base
        )
    offered = offered_to(validation, unit, method, points)
    on_validation = swept(validation, unit, method.rule, offered)
    if method.thresholds == "shared":
        own = offered_to(test, unit, method, points)
        both, like = torch.cat([offered.thresholds, own.thresholds]).unique(), offered.thresholds
        if (
            len(like) > 1 and like[0] > like[-1]
        ):  # from the cheapest to the most cautious, as the rule's grid runs
            both = both.flip(0)
        offered = Candidates(both, both)
    on_test = swept(test, unit, method.rule, offered)
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
    """The rows with the cell and the method in front."""
    named = rows.assign(dataset=cell.dataset, arch=cell.arch, seed=cell.seed, method=method)
    return named[["dataset", "arch", "seed", "method", *rows.columns]]
