"""The job that evaluates every method of a cell on its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.evaluation.curves import Answers, Costs, label
from ztw.evaluation.methods import evaluate_method
from ztw.evaluation.metric_rows import backbone_metrics, metric_records
from ztw.evaluation.metrics import exit_accuracy
from ztw.files import read_json, sealed, write_json
from ztw.jobs.cell import CellNetworks
from ztw.models.checkpoints import versions
from ztw.models.costs import macs, paper_ops
from ztw.models.network import IC_MODES, EarlyExitNetwork
from ztw.models.operations import BACKEND, backbone_macs, backbone_paper_ops
from ztw.progress import Report
from ztw.study.settings import EvaluationSettings, MethodSettings
from ztw.tensors import write_tensors


def evaluate(
    networks: CellNetworks,
    methods: Mapping[str, MethodSettings],
    evaluation: EvaluationSettings,
    outputs: Mapping[str, tuple[str, str, str]],
    report: Report,
) -> None:
    """Evaluate every method of a cell; outputs: method -> files of its (curves, metrics, right answers)."""
    accuracy = _backbone_accuracy(networks)
    for done, (name, (curves_file, metrics_file, answers_file)) in enumerate(outputs.items(), 1):
        method = methods[name]
        report(f"{name} ({done}/{len(outputs)})")
        network = networks.of_method(method)
        costs = _costs(network, evaluation.protocols)
        answers = {split: Answers(*networks.answers(network, method, split)) for split in networks.splits}
        validation, test = answers.get("validation"), answers["test"]
        found = evaluate_method(validation, test, costs, method, evaluation)
        metrics = pd.concat([found.metrics, backbone_metrics(costs["macs"].base, accuracy)])
        with sealed(curves_file) as scratch:
            label(found.curves, networks.cell, name).to_parquet(scratch, index=False)
        write_tensors(answers_file, found.correct)
        write_method(metrics_file, networks, (name, method), metrics)


def _costs(network: EarlyExitNetwork, protocols: Sequence[str]) -> dict[str, Costs]:
    costs = {"macs": Costs(macs(network), backbone_macs(network.backbone))}
    if "published" in protocols:
        costs["paper_ops"] = Costs(paper_ops(network), backbone_paper_ops(network.backbone))
    return costs


def _backbone_accuracy(networks: CellNetworks) -> float | None:
    """Test accuracy of the backbone alone: the last exit of a set that left it as it was, None without one."""
    for name, ics in networks.sets.items():
        if not ics.trains_backbone and not IC_MODES[ics.mode].additive:
            return float(exit_accuracy(*networks.predictions(name, "test"))[-1])
    return None


def _computed(networks: CellNetworks, ics: str) -> list[dict[str, Any]]:
    """Where and how what a method's answers come from was computed, a part each."""
    parts = {"backbone": networks.files.backbone, f"ics {ics}": networks.files.ics[ics]}
    parts[f"predictions {ics}"] = networks.files.predictions[ics, "test"]
    return [
        {"part": part, **{name: facts[name] for name in ("device", "precision", "threads", "host")}}
        for part, file in parts.items()
        if file is not None
        for facts in [read_json(Path(file).with_suffix(".json"))]
    ]


def write_method(
    path: str, networks: CellNetworks, method: tuple[str, MethodSettings], metrics: pd.DataFrame
) -> None:
    """Write down what is known of a method (name, settings); JSON has no word for not-a-number but null."""
    cell = networks.cell
    facts = {
        "dataset": cell.dataset,
        "arch": cell.arch,
        "seed": cell.seed,
        "method": method[0],
        "settings": method[1].model_dump(),
        "cost_unit": f"MACs (ptflops, backend {BACKEND})",
        "metrics": metric_records(metrics),
        "computed": _computed(networks, method[1].ics),
        "versions": versions(),
    }
    write_json(path, facts)
