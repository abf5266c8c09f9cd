"""What each job of a cell (dataset, arch, seed) does: read its inputs, call the library, write its outputs.

The workflow's scripts are one call of a function here; `settings` is the checked config.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.backbone import Backbone
from ztw.backbones import build_backbone
from ztw.checkpoints import load_checkpoint, read_tensors, save_checkpoint, versions, write_tensors
from ztw.data import ImageSet, held_out_split, load_split
from ztw.device import pick_device, resolve_precision
from ztw.ensembles import Ensemble, build_ensemble, fit_ensemble
from ztw.errors import ZtwError
from ztw.files import read_json, write_json
from ztw.network import EarlyExitNetwork, build_network
from ztw.predictions import predict
from ztw.progress import Report
from ztw.training import Recipe, train_backbone, train_ics

Settings = Mapping[str, Any]
Cell = Mapping[str, Any]  # {"dataset": ..., "arch": ..., "seed": ...}


def set_up(threads: int) -> None:
    """Use as many threads as the scheduler gave this job, and only deterministic algorithms."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def _recipe(section: Settings, precision: str) -> Recipe:
    names = ("epochs", "batch_size", "lr", "weight_decay", "schedule", "gamma")
    return Recipe(
        **{name: section[name] for name in names},
        momentum=section.get("momentum", 0.9),
        milestones=tuple(section["milestones"]),
        precision=precision,
    )


def _compute(settings: Settings) -> tuple[torch.device, str]:
    device = pick_device(settings["device"])
    return device, resolve_precision(settings["precision"], device)


def _training_parts(prepared: dict, cell: Cell, settings: Settings) -> tuple[ImageSet, ImageSet]:
    """(train, validation): the same split in every job of a cell."""
    data = load_split(prepared, "train")
    train, held_out = held_out_split(
        data.labels, settings["data"]["validation_fraction"], seed=int(cell["seed"])
    )
    return data.take(train), data.take(held_out)


def _empty_backbone(prepared: dict, cell: Cell) -> Backbone:
    return build_backbone(cell["arch"], prepared["classes"], prepared["channels"], prepared["size"])


def _identity(prepared: dict, cell: Cell) -> dict[str, Any]:
    """The facts a checkpoint must share with the job that loads it."""
    return {
        "arch": cell["arch"],
        "dataset": cell["dataset"],
        "seed": int(cell["seed"]),
        "classes": prepared["classes"],
        "input_shape": [prepared["channels"], prepared["size"], prepared["size"]],
    }


def load_network(
    cell: Cell, settings: Settings, prepared: dict, backbone_file: Path | str, name: str, ics_file: Path | str
) -> EarlyExitNetwork:
    """The trained network of one IC set, on the CPU in eval mode; raises ZtwError when a checkpoint does not fit."""
    backbone = _empty_backbone(prepared, cell)
    load_checkpoint(backbone_file, backbone, _identity(prepared, cell))
    network = _attach(backbone, settings, name)
    trained_as = {"ics": name, "mode": network.ics, "placement": list(network.placement)}
    load_checkpoint(ics_file, network.heads, {**_identity(prepared, cell), **trained_as})
    return network.eval()


def _attach(backbone: Backbone, settings: Settings, name: str) -> EarlyExitNetwork:
    section = settings["ics"]
    return build_network(backbone, section["sets"][name]["mode"], section["head"], section["placement"])


def _share(networks: list[EarlyExitNetwork], device: torch.device) -> list[EarlyExitNetwork]:
    """Give all networks the first one's backbone object, on `device`."""
    for network in networks:
        network.backbone = networks[0].backbone
        network.to(device)
    return networks


def _accuracy(backbone: Backbone, data: ImageSet, precision: str, batch_size: int) -> float:
    plain = EarlyExitNetwork(backbone, [], (), "independent")
    (logits,), labels = predict([plain], data, batch_size, precision)
    return float((logits[0].argmax(-1) == labels).double().mean())


def run_train_backbone(
    cell: Cell, settings: Settings, prepared_file: str, output: str, report: Report
) -> None:
    """Train a backbone; writes weights and JSON."""
    prepared = read_json(prepared_file)
    device, precision = _compute(settings)
    train, validation = (part.to(device) for part in _training_parts(prepared, cell, settings))
    seed = int(cell["seed"])
    torch.manual_seed(seed)
    backbone = _empty_backbone(prepared, cell).to(device)
    recipe = _recipe(settings["backbone"], precision)
    history = train_backbone(backbone, train, recipe, seed, report)
    facts = {
        **_identity(prepared, cell),
        "settings": settings["backbone"],
        "accuracy": {"validation": _accuracy(backbone, validation, precision, recipe.batch_size)},
        "history": history,
        **_provenance(device, precision),
    }
    save_checkpoint(output, backbone, facts)


def _provenance(device: torch.device, precision: str) -> dict[str, Any]:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": where,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def run_train_ics(
    cell: Cell,
    settings: Settings,
    prepared_file: str,
    backbone_file: str,
    outputs: Mapping[str, str],
    report: Report,
) -> None:
    """Train every IC set of a cell in one pass of the frozen backbone; outputs: IC set -> file."""
    prepared = read_json(prepared_file)
    device, precision = _compute(settings)
    train, _ = _training_parts(prepared, cell, settings)
    backbone = _empty_backbone(prepared, cell)
    load_checkpoint(backbone_file, backbone, _identity(prepared, cell))
    seed = int(cell["seed"])
    networks = []
    for name in outputs:
        torch.manual_seed(seed)  # a set's weights do not depend on which others are trained with it
        networks.append(_attach(backbone, settings, name))
    _share(networks, device)
    histories = train_ics(networks, train.to(device), _recipe(settings["ics"], precision), seed, report)
    for (name, output), network, history in zip(outputs.items(), networks, histories, strict=True):
        facts = {
            **_identity(prepared, cell),
            "ics": name,
            "mode": network.ics,
            "placement": list(network.placement),
            "settings": {key: value for key, value in settings["ics"].items() if key != "sets"},
            "history": history,
            **_provenance(device, precision),
        }
        save_checkpoint(output, network.heads, facts)


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
    device, precision = _compute(settings)
    networks = _share(
        [
            load_network(cell, settings, prepared, backbone_file, name, file)
            for name, file in ics_files.items()
        ],
        device,
    )
    train, validation = _training_parts(prepared, cell, settings)
    generator = torch.Generator().manual_seed(int(cell["seed"]))
    samples = settings["ensembles"]["samples"]
    if samples is not None:
        train = train.take(torch.randperm(len(train), generator=generator)[:samples])
    parts = {
        "train": (train, generator),  # augmented, as the released recipe's ensembles are fitted
        "validation": (validation, None),
        "test": (load_split(prepared, "test"), None),
    }
    for split, (data, augmenter) in parts.items():
        logits, labels = predict(
            networks, data.to(device), settings["ics"]["batch_size"], precision, augmenter, report
        )
        for name, values in zip(ics_files, logits, strict=True):
            if not values.isfinite().all():
                raise ZtwError(f"{ics_files[name]}: its logits on {split} are not finite; train it again")
            write_tensors(outputs[name, split], {"logits": values, "labels": labels})


def run_fit_ensembles(
    settings: Settings, train_files: Mapping[str, str], outputs: Mapping[tuple[str, str], str], report: Report
) -> None:
    """Fit the ensembles of a cell; train_files: IC set -> logits; outputs: (IC set, kind) -> file."""
    for done, ((name, kind), output) in enumerate(outputs.items(), 1):
        report(f"{name} {kind} ({done}/{len(outputs)})")
        predictions = read_tensors(train_files[name])
        logits, labels = predictions["logits"], predictions["labels"]
        include_final = settings["ensembles"]["include_final"]
        ensemble = fit_ensemble(logits, labels, kind, include_final)
        picked = ensemble(logits).gather(2, labels.expand(len(logits), -1)[..., None])
        facts = {
            "ics": name,
            "kind": kind,
            "exits": ensemble.exits,
            "classes": ensemble.classes,
            "include_final": include_final,
            "samples": len(labels),
            "loss": [-value for value in picked.double().mean((1, 2)).tolist()],
            "versions": versions(),
        }
        save_checkpoint(output, ensemble, facts)


def load_ensemble(path: Path | str) -> Ensemble:
    """A fitted ensemble; raises ZtwError when its files are broken."""
    facts = read_json(Path(path).with_suffix(".json"))
    ensemble = build_ensemble(facts["kind"], facts["exits"], facts["classes"], facts["include_final"])
    load_checkpoint(path, ensemble, {})
    return ensemble


def read_predictions(path: Path | str) -> tuple[Tensor, Tensor]:
    """(logits, labels) as `run_predict` wrote them."""
    tensors = read_tensors(path)
    return tensors["logits"], tensors["labels"]


def write_prepared(record: dict, settings: Settings, output: str) -> None:
    """Write a data set's record with the study's own choice of augmentation."""
    chosen = {key: settings["data"][key] for key in ("flip", "crop_padding")}
    write_json(output, {**record, **{key: value for key, value in chosen.items() if value is not None}})
