"""The job that evaluates every method of a cell on its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.evaluation.curves import Costs, SplitPredictions, label
from ztw.evaluation.methods import evaluate_method, rules_at_budgets
from ztw.evaluation.metric_rows import backbone_metrics, metric_records
from ztw.evaluation.metrics import exit_accuracy
from ztw.evaluation.network_file import Weights, network_facts, write_network
from ztw.files import read_json, sealed, sha256, write_json
from ztw.jobs.cell import CellNetworks
from ztw.models.backbone import Backbone
from ztw.models.checkpoints import versions
from ztw.models.costs import costly_exits, macs
from ztw.models.network import CONNECTIONS, EarlyExitNetwork
from ztw.models.operations import BACKEND
from ztw.progress import Note, Report
from ztw.study.settings import DataSettings, EvaluationSettings, MethodSettings
from ztw.tensors import write_tensors


def evaluate(
    networks: CellNetworks,
    methods: Mapping[str, MethodSettings],
    evaluation: EvaluationSettings,
    data: DataSettings,
    outputs: Mapping[str, tuple[str, str, str, str]],
    report: Report,
) -> None:
    """Evaluate every method of a cell; outputs: method -> files of its (curves, metrics, right answers, network)."""
    accuracy, backbone = _backbone_accuracy(networks), networks.untrained_backbone()
    hashes: dict[Path, str] = {}
    told: set[str] = set()  # IC sets whose cost has been looked at
    for done, (name, (curves_file, metrics_file, answers_file, network_file)) in enumerate(
        outputs.items(), 1
    ):
        method = methods[name]
        report(f"{name} ({done}/{len(outputs)})")
        network = networks.of_method(method)
        costs = _costs(network, backbone, evaluation.protocols)
        if method.ics and method.ics not in told:
            told.add(method.ics)
            if line := costly_exits(f"ics {method.ics}", costs["ztw"].cost, costs["ztw"].base):
                report(Note(line))
        answers = {
            split: SplitPredictions(*networks.answers(network, method, split)) for split in networks.splits
        }
        validation, test = answers.get("validation"), answers["test"]
        found = evaluate_method(validation, test, costs, method, evaluation)
        metrics = pd.concat([found.metrics, backbone_metrics(costs["ztw"].base, accuracy)])
        with sealed(curves_file) as scratch:
            label(found.curves, networks.cell, name).to_parquet(scratch, index=False)
        write_tensors(answers_file, found.correct)
        write_method(metrics_file, networks, (name, method), metrics)
        network.class_names = tuple(networks.record["class_names"])
        network.normalisation = _normalisation(networks, data)
        rules = found.rules.get("held-out") or rules_at_budgets(
            validation or test, costs["ztw"], method, evaluation
        )
        facts = network_facts(network, network.backbone.origin or {}, costs["ztw"].cost, costs["ztw"].base)
        facts |= {"method": name, "thresholds_chosen_on": "validation" if validation else "test"}
        files = _weights(networks, method)
        hashes |= {part.path: sha256(part.path) for part in files if part.path not in hashes}
        write_network(Path(network_file).parent, facts, files, list(rules.items()), hashes)


def _normalisation(networks: CellNetworks, data: DataSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that the cell's images are normalised with."""
    record = networks.record
    return tuple(data.mean or record["mean"]), tuple(data.std or record["std"])


def _weights(networks: CellNetworks, method: MethodSettings) -> list[Weights]:
    """The files of the cell that hold a method's weights."""
    files = networks.home(method).files
    if method.static:
        return [Weights(Path(str(files.backbone)), "backbone.")]
    ics = Path(files.ics[method.ics])
    if networks.sets[method.ics].trains_backbone:
        parts = [Weights(ics)]
    else:
        parts = [Weights(Path(str(files.backbone)), "backbone."), Weights(ics, "heads.")]
    if method.ensemble is not None:
        parts.append(Weights(Path(files.ensembles[method.ics, method.ensemble]), "ensemble."))
    return parts


def _costs(network: EarlyExitNetwork, backbone: Backbone, protocols: Sequence[str]) -> dict[str, Costs]:
    """By counter, of a method's network; backbone: the cell's, which budgets are shares of."""
    counters = ("ztw", "published") if "published" in protocols else ("ztw",)
    return {counter: Costs(macs(network, counter), macs(backbone, counter)) for counter in counters}


def _backbone_accuracy(networks: CellNetworks) -> float | None:
    """Test accuracy of the backbone alone: the last exit of a set that left it as it was, None without one."""
    for name, ics in networks.sets.items():
        if not ics.trains_backbone and not CONNECTIONS[ics.connection].additive:
            return float(exit_accuracy(*networks.predictions(name, "test"))[-1])
    return None


def _computed(networks: CellNetworks, method: MethodSettings) -> list[dict[str, Any]]:
    """Where and how what a method's answers come from was computed, a part each."""
    files = networks.home(method).files
    if method.static:
        parts = {f"backbone {method.static}": files.backbone}
    else:
        parts = {"backbone": files.backbone, f"ics {method.ics}": files.ics[method.ics]}
    parts[f"predictions {method.static or method.ics}"] = files.predictions[method.ics, "test"]
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
        "computed": _computed(networks, method[1]),
        "versions": versions(),
    }
    write_json(path, facts)
