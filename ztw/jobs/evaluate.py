"""Evaluate every method of a cell on its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.evaluation.correct import write_correct
from ztw.evaluation.curves import Costs, SplitPredictions, label
from ztw.evaluation.methods import evaluate_method, rules_at_budgets
from ztw.evaluation.metric_rows import backbone_metrics, metric_records
from ztw.evaluation.metrics import exit_accuracy
from ztw.evaluation.network_file import Weights, network_metadata, write_network
from ztw.exits.logits import read_predictions
from ztw.files import read_json, sealed, sha256, write_json
from ztw.jobs.cell import CellNetworks
from ztw.jobs.job import Job
from ztw.models.checkpoints import versions
from ztw.models.costs import costly_exits, macs
from ztw.models.network import CONNECTIONS, EarlyExitNetwork
from ztw.models.operations import BACKEND
from ztw.progress import Note
from ztw.study.layout import Cell, metadata
from ztw.study.settings import DataSettings, EvaluationSettings, MethodSettings
from ztw.study.training_settings import BackboneBuild, IcSet


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings that the metrics of a cell depend on; statics: architecture of a static network -> its options."""

    images: DataSettings
    build: BackboneBuild
    statics: dict[str, BackboneBuild]
    sets: dict[str, IcSet]
    methods: dict[str, MethodSettings]
    evaluation: EvaluationSettings


def evaluate(job: Job, cell: Cell, settings: EvaluateSettings) -> None:
    """Evaluate every method of a cell: write its curves, metrics, correct samples and network."""
    networks = CellNetworks(
        job.layout, cell, settings.build, settings.sets, settings.statics, records=("train",)
    )
    accuracy, base = _backbone_accuracy(networks), _base_costs(networks, settings.evaluation.protocols)
    hashes: dict[Path, str] = {}
    for name, network, costs in _with_costs(job, networks, settings, base):
        method, layout = settings.methods[name], job.layout
        found_on = {
            split: SplitPredictions(*networks.predictions(network, method, split))
            for split in settings.images.evaluated
        }
        validation, test = found_on.get("validation"), found_on["test"]
        found = evaluate_method(validation, test, costs, method, settings.evaluation)
        metrics = pd.concat([found.metrics, backbone_metrics(base["ztw"], accuracy)])
        with sealed(layout.curves(cell, name)) as scratch:
            label(found.curves, cell, name).to_parquet(scratch, index=False)
        write_correct(layout.correct(cell, name), found.correct)
        write_method(networks, name, method, metrics)
        rules = found.rules.get("held-out") or rules_at_budgets(
            validation or test, costs["ztw"], method, settings.evaluation
        )
        network.class_names = tuple(networks.record["class_names"])
        network.normalisation = _normalisation(networks, settings.images)
        described = network_metadata(network, network.backbone.origin or {}, costs["ztw"].cost, base["ztw"])
        described |= {"method": name, "thresholds_chosen_on": "validation" if validation else "test"}
        files = _weights(networks, method)
        hashes |= {part.path: sha256(part.path) for part in files if part.path not in hashes}
        write_network(layout.network(cell, name).parent, described, files, list(rules.items()), hashes)


def _with_costs(
    job: Job, networks: CellNetworks, settings: EvaluateSettings, base: dict[str, float]
) -> Iterator[tuple[str, EarlyExitNetwork, dict[str, Costs]]]:
    """Yield every method with its network and costs by counter; each network is loaded once."""
    loaded: dict[str, EarlyExitNetwork] = {}
    counted: dict[tuple[str, str | None], dict[str, Costs]] = {}
    for done, (name, method) in enumerate(settings.methods.items(), 1):
        job.report(f"{name} ({done}/{len(settings.methods)})")
        key = method.static or method.ics
        if new := key not in loaded:
            loaded[key] = networks.of_method(method)
        network = loaded[key]
        network.ensemble = networks.ensemble(method)
        of = key, method.ensemble
        if of not in counted:
            counted[of] = {counter: Costs(macs(network, counter), base[counter]) for counter in base}
        costs = counted[of]["ztw"]
        if new and method.ics and (line := costly_exits(f"ics {method.ics}", costs.cost, costs.base)):
            job.report(Note(line))
        yield name, network, counted[of]


def _base_costs(networks: CellNetworks, protocols: Sequence[str]) -> dict[str, float]:
    """Return the cost of the cell's backbone by counter. Budgets are shares of this cost."""
    backbone = networks.untrained_backbone()
    counters = ("ztw", "published") if "published" in protocols else ("ztw",)
    return {counter: macs(backbone, counter) for counter in counters}


def _normalisation(networks: CellNetworks, data: DataSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    record = networks.record
    return tuple(data.mean or record["mean"]), tuple(data.std or record["std"])


def _weights(networks: CellNetworks, method: MethodSettings) -> list[Weights]:
    layout, home = networks.layout, networks.home(method).cell
    backbone = Weights(layout.backbone(home), "backbone.")
    if method.static:
        return [backbone]
    ics = layout.ics(home, method.ics)
    parts = (
        [Weights(ics)] if networks.sets[method.ics].trains_backbone else [backbone, Weights(ics, "heads.")]
    )
    if method.ensemble is not None:
        parts.append(Weights(layout.ensemble(home, method.ics, method.ensemble), "ensemble."))
    return parts


def _backbone_accuracy(networks: CellNetworks) -> float | None:
    """Return the backbone's test accuracy, from an IC set on the frozen backbone; None if there is no such set."""
    for name, ics in networks.sets.items():
        if not ics.trains_backbone and not CONNECTIONS[ics.connection].additive:
            predictions = read_predictions(networks.layout.predictions(networks.cell, name, "test"))
            return float(exit_accuracy(*predictions)[-1])
    return None


def _computed(networks: CellNetworks, method: MethodSettings) -> list[dict[str, Any]]:
    """Return the hardware and precision of each part of a method's predictions."""
    layout, home = networks.layout, networks.home(method).cell
    if method.static:
        parts = {f"backbone {method.static}": layout.backbone(home)}
    else:
        parts = {"backbone": layout.backbone(home), f"ics {method.ics}": layout.ics(home, method.ics)}
    parts[f"predictions {method.static or method.ics}"] = networks.predictions_file(method, "test")
    return [
        {"part": part, **{name: saved[name] for name in ("device", "precision", "threads", "host")}}
        for part, file in parts.items()
        for saved in [read_json(metadata(file))]
    ]


def write_method(networks: CellNetworks, name: str, method: MethodSettings, metrics: pd.DataFrame) -> None:
    """Write a method's metrics, settings, hardware and versions; NaN becomes null."""
    cell = networks.cell
    content = {
        "dataset": cell.dataset,
        "arch": cell.arch,
        "seed": cell.seed,
        "method": name,
        "settings": method.model_dump(),
        "cost_unit": f"MACs (ptflops, backend {BACKEND})",
        "metrics": metric_records(metrics),
        "computed": _computed(networks, method),
        "versions": versions(),
    }
    write_json(networks.layout.metrics(cell, name), content)
