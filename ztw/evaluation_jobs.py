"""The jobs after training: a cell's logits, its ensembles, the evaluation of its methods.

The workflow's scripts are one call of a function here; `settings` is the checked config.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ztw.checkpoints import save_checkpoint, versions, write_tensors
from ztw.costs import BACKEND, backbone_macs, backbone_paper_ops, macs, paper_ops
from ztw.ensembles import fit_ensemble
from ztw.errors import ZtwError
from ztw.evaluation import exit_accuracy
from ztw.figures import accuracy_against_cost, save
from ztw.files import atomic, read_json, write_json
from ztw.jobs import (
    Cell,
    CellFiles,
    Settings,
    compute_on,
    data_parts,
    load_method,
    load_network,
    method_logits,
    read_predictions,
    share_backbone,
    trains_trunk,
)
from ztw.methods import Answers, Costs, Metrics, evaluate_method, label
from ztw.network import IC_MODES, EarlyExitNetwork
from ztw.predictions import predict
from ztw.progress import Report


def run_predict(
    cell: Cell,
    settings: Settings,
    prepared_file: str,
    backbone_file: str,
    ics_files: Mapping[str, str],
    outputs: Mapping[tuple[str, str], str],
    report: Report,
) -> None:
    """Write the logits of every IC set on every split; outputs: (IC set, split) -> file."""
    prepared = read_json(prepared_file)
    device, precision = compute_on(settings)
    networks = {
        name: load_network(cell, settings, prepared, backbone_file, name, file)
        for name, file in ics_files.items()
    }
    data_of = data_parts(prepared, cell, settings)
    train = data_of["train"]
    generator = torch.Generator().manual_seed(int(cell["seed"]))
    samples = settings["samples"]
    if samples is not None:
        train = train.take(torch.randperm(len(train), generator=generator)[:samples])
    parts = {
        "train": (train, generator.get_state()),  # augmented, as the released recipe's ensembles are fitted
        "validation": (data_of["validation"], None),
        "test": (data_of["test"], None),
    }
    for names in _by_trunk(settings["ics"]["sets"], networks):
        together = share_backbone([networks[name] for name in names], device)
        for split in dict.fromkeys(split for _, split in outputs):
            data, state = parts[split]
            augmenter = None if state is None else torch.Generator()
            if augmenter is not None and state is not None:
                augmenter.set_state(state)  # every trunk sees the same images
            logits, labels = predict(
                together, data.to(device), settings["ics"]["batch_size"], precision, augmenter, report
            )
            for name, values in zip(names, logits, strict=True):
                if not values.isfinite().all():
                    raise ZtwError(f"{ics_files[name]}: its logits on {split} are not finite; train it again")
                write_tensors(outputs[name, split], {"logits": values, "labels": labels})


def _by_trunk(sets: Settings, names: Iterable[str]) -> list[list[str]]:
    """The sets on the frozen backbone together, each of the others alone."""
    frozen = [name for name in names if not trains_trunk(sets[name])]
    alone = [[name] for name in names if trains_trunk(sets[name])]
    return [frozen, *alone] if frozen else alone


def run_fit_ensembles(
    settings: Settings,
    predictions: Mapping[tuple[str, str], str],
    outputs: Mapping[tuple[str, str], str],
    report: Report,
) -> None:
    """Fit a cell's ensembles; predictions: (IC set, split) -> logits; outputs: (IC set, ensemble) -> file."""
    for done, ((name, title), output) in enumerate(outputs.items(), 1):
        report(f"{name} {title} ({done}/{len(outputs)})")
        own = settings["ensembles"]["sets"][title]
        logits, labels = read_predictions(predictions[name, own["fit_on"]])
        if own["samples"] is not None and own["samples"] < len(labels):
            # drawn, because a split may be stored class by class
            drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
            drawn = drawn[: own["samples"]]
            logits, labels = logits[:, drawn], labels[drawn]
        ensemble = fit_ensemble(logits, labels, own["kind"], own["include_final"])
        picked = ensemble(logits).gather(2, labels.expand(len(logits), -1)[..., None])
        facts = {
            "ics": name,
            "ensemble": title,
            "kind": own["kind"],
            "exits": ensemble.exits,
            "classes": ensemble.classes,
            "include_final": own["include_final"],
            "fit_on": own["fit_on"],
            "samples": len(labels),
            "loss": [-value for value in picked.double().mean((1, 2)).tolist()],
            "versions": versions(),
        }
        save_checkpoint(output, ensemble, facts)


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
