"""The jobs after training: a cell's logits, its ensembles, the evaluation of its methods.

The workflow's scripts are one call of a function here; `settings` is the checked config.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ztw.evaluation.costs import macs, paper_ops
from ztw.evaluation.methods import Answers, Costs, Metrics, evaluate_method, label
from ztw.evaluation.metrics import exit_accuracy
from ztw.exits.logits import read_predictions
from ztw.files import atomic, write_json
from ztw.jobs.cell import (
    Cell,
    CellFiles,
    Settings,
    load_method,
    method_logits,
    trains_trunk,
)
from ztw.models.checkpoints import versions
from ztw.models.network import IC_MODES, EarlyExitNetwork
from ztw.models.operations import BACKEND, backbone_macs, backbone_paper_ops
from ztw.progress import Report
from ztw.reporting.figures import accuracy_against_cost, save
from ztw.tensors import write_tensors


def _costs(network: EarlyExitNetwork, protocols: Sequence[str]) -> dict[str, Costs]:
    costs = {"macs": Costs(macs(network), backbone_macs(network.backbone))}
    if "published" in protocols:
        costs["paper_ops"] = Costs(paper_ops(network), backbone_paper_ops(network.backbone))
    return costs


def _backbone_accuracy(sets: Settings, predictions: Mapping[tuple[str, str], str]) -> float | None:
    """Test accuracy of the backbone alone: the last exit of a set that left it as it was, None without one."""
    for name, ics in sets.items():
        if not trains_trunk(ics) and not IC_MODES[ics["mode"]].additive:
            return float(exit_accuracy(*read_predictions(predictions[name, "test"]))[-1])
    return None


def run_evaluate(
    cell: Cell,
    settings: Settings,
    files: CellFiles,
    outputs: Mapping[str, tuple[str, str, str]],
    figure_stem: str,
    report: Report,
) -> None:
    """Evaluate every method of a cell, and draw their curves for who looks at the cell's run.

    outputs: method -> (curve, metrics, answers).
    """
    evaluation = settings["evaluation"]
    backbone_accuracy = _backbone_accuracy(settings["ics"]["sets"], files.predictions)
    curves, drawn = {}, {}
    for done, (name, (curve_file, metrics_file, answers_file)) in enumerate(outputs.items(), 1):
        method = settings["methods"][name]
        report(f"{name} ({done}/{len(outputs)})")
        network = load_method(cell, settings, files, name)
        costs = _costs(network, evaluation["protocols"])
        validation, test = (
            Answers(*method_logits(network, settings, files, name, split)) for split in ("validation", "test")
        )
        found = evaluate_method(validation, test, costs, method["rule"], method["thresholds"], evaluation)
        found.metrics["backbone/macs"] = costs["macs"].base
        if backbone_accuracy is not None:
            found.metrics["backbone/accuracy"] = backbone_accuracy
        with atomic(curve_file) as scratch:
            label(found.rows, cell, name).to_parquet(scratch, index=False)
        write_tensors(answers_file, found.correct)
        write_json(metrics_file, _facts(cell, name, method, found.metrics))
        curves[name] = found.rows[found.rows["split"] == "test"]
        drawn[name] = [{"metrics": found.metrics}]
    save(accuracy_against_cost(curves, drawn, "{dataset}, {arch}, seed {seed}".format(**cell)), figure_stem)


def _facts(cell: Cell, name: str, method: Settings, metrics: Metrics) -> dict[str, Any]:
    """What is written down of a method; JSON has no word for not-a-number but null."""
    return {
        "dataset": cell["dataset"],
        "arch": cell["arch"],
        "seed": int(cell["seed"]),
        "method": name,
        "settings": method,
        "cost_unit": f"MACs (ptflops, backend {BACKEND})",
        "metrics": {key: None if math.isnan(value) else value for key, value in metrics.items()},
        "versions": versions(),
    }
