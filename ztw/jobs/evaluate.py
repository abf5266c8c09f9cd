"""Evaluate every method of a cell on its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztw.evaluation.curves import Costs, SplitPredictions
from ztw.evaluation.methods import Rules, rules_at_budgets
from ztw.evaluation.metrics import exit_accuracy
from ztw.evaluation.network_file import Weights, network_metadata, write_network
from ztw.exits.logits import read_predictions
from ztw.exits.rules import exit_rule
from ztw.files import read_json, sha256
from ztw.jobs.cell import CellNetworks, StaticNetwork
from ztw.jobs.given import GivenCell
from ztw.jobs.job import Job
from ztw.jobs.method_results import Evaluated, write_results
from ztw.jobs.training_cost import training_cost, unequal
from ztw.models.cascade import MEMBER
from ztw.models.costs import costly_exits, fixed_exit_macs, macs
from ztw.models.network import CONNECTIONS, EarlyExitNetwork
from ztw.models.operations import BACKEND
from ztw.progress import Note
from ztw.study.layout import Cell, metadata
from ztw.study.logits_settings import LogitsSet
from ztw.study.settings import DataSettings, EvaluationSettings, MethodSettings
from ztw.study.training_settings import BackboneBuild, IcSet


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings that the metrics of a cell depend on.

    Args:
        statics: method -> its static network.
        logits: sets of logits from files; if there are any, the cell has no networks.
    """

    images: DataSettings
    build: BackboneBuild
    statics: dict[str, StaticNetwork]
    sets: dict[str, IcSet]
    logits: dict[str, LogitsSet]
    methods: dict[str, MethodSettings]
    evaluation: EvaluationSettings


def evaluate(job: Job, cell: Cell, settings: EvaluateSettings) -> None:
    """Evaluate every method of a cell: write its curves, metrics, correct samples and network."""
    if settings.logits:
        for one in GivenCell(job.layout, cell, settings.logits, settings.methods).methods(job.report):
            write_results(job, cell, one, settings.evaluation)
        return
    networks = CellNetworks(
        job.layout,
        cell,
        settings.build,
        settings.sets,
        settings.methods,
        settings.statics,
        records=("train",),
    )
    hashes: dict[Path, str] = {}
    passes: dict[str, float] = {}
    for one in _trained(job, networks, settings):
        rules = write_results(job, cell, one, settings.evaluation)
        _write_network(networks, one, rules, settings, hashes)
        passes[one.name] = one.training[0].value
    if note := unequal(passes):
        job.report(Note(note))


def _write_network(
    networks: CellNetworks,
    one: Evaluated,
    rules: Rules | None,
    settings: EvaluateSettings,
    hashes: dict[Path, str],
) -> None:
    """Write a method's network with its rules; hashes: SHA-256 of weights, filled."""
    network, unit, method = one.network, one.costs["ztw"], one.method
    assert network is not None
    network.class_names = tuple(networks.record["class_names"])
    network.normalisation = _normalisation(networks, settings.images)
    chosen_on = "validation" if "validation" in one.splits else "test"
    rules = rules or rules_at_budgets(one.splits[chosen_on], unit, method, settings.evaluation)
    described = network_metadata(network, network.backbone.origin or {}, unit.cost, unit.base)
    described |= {"method": one.name, "thresholds_chosen_on": chosen_on, "int8": method.int8}
    files = _weights(networks, one.name)
    hashes |= {part.path: sha256(part.path) for part in files if part.path not in hashes}
    folder = networks.layout.network(networks.cell, one.name).parent
    write_network(folder, described, files, list(rules.items()), hashes)


def _trained(job: Job, networks: CellNetworks, settings: EvaluateSettings) -> Iterator[Evaluated]:
    """Yield every method of a trained cell; each network is loaded once."""
    accuracy, base = _backbone_accuracy(networks), _base_costs(networks, settings.evaluation.protocols)
    loaded: dict[str, EarlyExitNetwork] = {}
    counted: dict[tuple[str, str | None, Any], dict[str, Costs]] = {}
    for done, (name, method) in enumerate(settings.methods.items(), 1):
        job.report(f"{name} ({done}/{len(settings.methods)})")
        key = networks.source(name)
        if new := key not in loaded:
            loaded[key] = networks.of_method(name)
        network = loaded[key]
        network.ensemble = networks.ensemble(name)
        count = fixed_exit_macs if exit_rule(method.rule).single else macs
        of = key, method.ensemble, count
        if of not in counted:
            counted[of] = {counter: Costs(count(network, counter), base[counter]) for counter in base}
        costs = counted[of]["ztw"]
        if new and method.ics and (line := costly_exits(f"ics {method.ics}", costs.cost, costs.base)):
            job.report(Note(line))
        yield Evaluated(
            name,
            method,
            splits={
                split: SplitPredictions(*networks.predictions(network, name, split))
                for split in settings.images.evaluated
            },
            costs=counted[of],
            unit=f"MACs (ptflops, backend {BACKEND})",
            backbone_accuracy=accuracy,
            computed=_computed(networks, name),
            network=network,
            training=training_cost(networks, name, network, settings.images),
        )


def _base_costs(networks: CellNetworks, protocols: Sequence[str]) -> dict[str, float]:
    """Return the cost of the cell's backbone by counter. Budgets are shares of this cost."""
    backbone = networks.untrained_backbone()
    counters = ("ztw", "published") if "published" in protocols else ("ztw",)
    return {counter: macs(backbone, counter) for counter in counters}


def _normalisation(networks: CellNetworks, data: DataSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    record = networks.record
    return tuple(data.mean or record["mean"]), tuple(data.std or record["std"])


def _weights(networks: CellNetworks, name: str) -> list[Weights]:
    layout, cell, method = networks.layout, networks.cell, networks.methods[name]
    backbones = [layout.backbone(one.cell) for one in networks.members(name)]
    if method.static:
        return [Weights(file, "backbone.") for file in backbones]
    if method.cascade_of:
        parts = [Weights(file, MEMBER.format(number)) for number, file in enumerate(backbones)]
    elif networks.sets[method.ics].trains_backbone:
        parts = [Weights(layout.ics(cell, method.ics))]
    else:
        parts = [
            Weights(layout.backbone(cell), "backbone."),
            Weights(layout.ics(cell, method.ics), "heads."),
        ]
    if method.ensemble is not None:
        file = layout.ensemble(cell, networks.source(name), method.ensemble)
        parts.append(Weights(file, "ensemble."))
    return parts


def _backbone_accuracy(networks: CellNetworks) -> float | None:
    """Return the backbone's test accuracy, from an IC set on the frozen backbone; None if there is no such set."""
    for name, ics in networks.sets.items():
        if not ics.trains_backbone and not CONNECTIONS[ics.connection].additive:
            predictions = read_predictions(networks.layout.predictions(networks.cell, name, "test"))
            return float(exit_accuracy(*predictions)[-1])
    return None


def _computed(networks: CellNetworks, name: str) -> list[dict[str, Any]]:
    """Return the hardware and precision of each part of a method's predictions."""
    layout, cell, method = networks.layout, networks.cell, networks.methods[name]
    homes = [one.cell for one in networks.members(name)]
    parts = {f"backbone {home.arch}": layout.backbone(home) for home in homes}
    if not homes:
        parts = {"backbone": layout.backbone(cell), f"ics {method.ics}": layout.ics(cell, method.ics)}
    named = [home.arch for home in homes] or [method.ics]
    files = networks.predictions_files(name, "test")
    of_part = "int8 predictions {}" if method.int8 else "predictions {}"
    parts |= {of_part.format(of): file for of, file in zip(named, files, strict=True)}
    return [
        {"part": part, **{name: saved[name] for name in ("device", "precision", "threads", "host")}}
        for part, file in parts.items()
        for saved in [read_json(metadata(file))]
    ]
