"""Evaluating the methods of a cell: curves on validation and test, and the flat metrics the tables need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ztw.checkpoints import versions
from ztw.costs import BACKEND, backbone_macs, macs
from ztw.evaluation import Curve, at_budget, exit_accuracy, hindsight_improvability, sweep
from ztw.figures import accuracy_against_cost, save
from ztw.files import atomic, read_json, write_json
from ztw.jobs import Cell, Settings, load_ensemble, load_network, read_predictions
from ztw.progress import Report

Metrics = dict[str, float]


@dataclass(frozen=True)
class Answers:
    """What one method predicts on one split: logits (K, N, C), single exits or ensembled; labels (N,)."""

    logits: Tensor
    labels: Tensor


def evaluate_method(
    validation: Answers,
    test: Answers,
    cost: Tensor,
    base_cost: float,
    rule: str,
    budgets: Sequence[float | str],
    protocols: Sequence[str],
    points: int,
) -> tuple[pd.DataFrame, Metrics]:
    """Sweep one method and pick its parameter for every budget.

    cost: (K,) cumulative MACs; base_cost: MACs of the backbone alone. Protocol `held-out` picks on
    the validation split, `paper` on the test split; accuracy and cost are always the test split's.
    Returns the curves of both splits as rows and the metrics by name.
    """
    on_validation = sweep(validation.logits, validation.labels, cost, rule, points=points)
    own = sweep(test.logits, test.labels, cost, rule, points=points).parameter
    both = torch.cat([on_validation.parameter, own]).unique()
    on_test = sweep(test.logits, test.labels, cost, rule, _in_order(both, on_validation.parameter))
    metrics: Metrics = {}
    for protocol in protocols:
        chooser = on_validation if protocol == "held-out" else on_test
        for budget, index in zip(budgets, at_budget(chooser, budgets, base_cost), strict=True):
            parameter = None if index is None else chooser.parameter[index]
            metrics |= _at_parameter(on_test, parameter, base_cost, f"{protocol}/", f"_at_{budget}")
    metrics |= _per_exit("accuracy", exit_accuracy(test.logits, test.labels))
    metrics |= _per_exit("hindsight_improvability", hindsight_improvability(test.logits, test.labels))
    metrics |= _per_exit("relative_cost", cost / base_cost)
    rows = pd.concat(
        [
            _rows(curve, split, base_cost)
            for split, curve in (("validation", on_validation), ("test", on_test))
        ]
    )
    return rows, metrics


def _in_order(parameters: Tensor, like: Tensor) -> Tensor:
    """Parameters from the cheapest to the most cautious, as the rule's own grid runs."""
    return parameters.flip(0) if len(like) > 1 and like[0] > like[-1] else parameters


def _at_parameter(
    curve: Curve, parameter: Tensor | None, base_cost: float, before: str, after: str
) -> Metrics:
    if parameter is None:
        return {f"{before}{name}{after}": math.nan for name in ("accuracy", "relative_cost", "parameter")}
    index = int((curve.parameter == parameter).nonzero()[0])
    found = {
        "accuracy": curve.accuracy[index],
        "relative_cost": curve.cost[index] / base_cost,
        "parameter": parameter,
        **{f"exit_fraction_{k}": share for k, share in enumerate(curve.exit_fraction[index], 1)},
    }
    return {f"{before}{name}{after}": float(value) for name, value in found.items()}


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


def finite_or_none(value: float) -> float | None:
    """NaN as None, which JSON has a word for."""
    return None if math.isnan(value) else value


def run_evaluate(
    cell: Cell,
    settings: Settings,
    prepared_file: str,
    backbone_file: str,
    ics_files: Mapping[str, str],
    predictions: Mapping[tuple[str, str], str],
    ensembles: Mapping[tuple[str, str], str],
    outputs: Mapping[str, tuple[str, str]],
    figure_stem: str,
    report: Report,
) -> None:
    """Evaluate every method of a cell, and draw their curves for who looks at the cell's run.

    predictions: (IC set, split) -> file; ensembles: (IC set, kind) -> file; outputs: method -> (curve, metrics).
    """
    prepared = read_json(prepared_file)
    evaluation = settings["evaluation"]
    curves, drawn = {}, {}
    for done, (name, (curve_file, metrics_file)) in enumerate(outputs.items(), 1):
        method = settings["methods"][name]
        report(f"{name} ({done}/{len(outputs)})")
        ics, kind = method["ics"], method["ensemble"]
        network = load_network(cell, settings, prepared, backbone_file, ics, ics_files[ics])
        if kind is not None:
            network.ensemble = load_ensemble(ensembles[ics, kind])
        answers = {}
        for split in ("validation", "test"):
            logits, labels = read_predictions(predictions[ics, split])
            answers[split] = Answers(network.ensemble(logits) if network.ensemble else logits, labels)
        base_cost = backbone_macs(network.backbone)
        rows, metrics = evaluate_method(
            answers["validation"],
            answers["test"],
            macs(network),
            base_cost,
            method["rule"],
            evaluation["budgets"],
            evaluation["protocols"],
            evaluation["points"],
        )
        metrics["backbone/accuracy"] = float(exit_accuracy(*read_predictions(predictions[ics, "test"]))[-1])
        metrics["backbone/macs"] = base_cost
        with atomic(curve_file) as scratch:
            label(rows, cell, name).to_parquet(scratch, index=False)
        write_json(
            metrics_file,
            {
                **{key: cell[key] for key in ("dataset", "arch")},
                "seed": int(cell["seed"]),
                "method": name,
                "settings": method,
                "cost_unit": f"MACs (ptflops, backend {BACKEND})",
                "metrics": {key: finite_or_none(value) for key, value in metrics.items()},
                "versions": versions(),
            },
        )
        curves[name], drawn[name] = rows[rows["split"] == "test"], [{"metrics": metrics}]
    save(accuracy_against_cost(curves, drawn, "{dataset}, {arch}, seed {seed}".format(**cell)), figure_stem)
