"""What each job of a cell (dataset, arch, seed) does: read its inputs, call the library, write its outputs.

The workflow's scripts are one call of a function here; `settings` is the checked config.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ztw.backbone import Backbone
from ztw.backbones import build_backbone
from ztw.cells import ANATOMY, RECIPE
from ztw.checkpoints import load_checkpoint, read_tensors, save_checkpoint, versions, write_tensors
from ztw.data import Data, held_out_split, load_split
from ztw.device import pick_device, resolve_precision
from ztw.ensembles import Ensemble, build_ensemble, fit_ensemble
from ztw.errors import ZtwError
from ztw.fetch import data_root
from ztw.files import read_json, sha256
from ztw.foreign import fetch_weights, load_foreign, read_foreign
from ztw.network import EarlyExitNetwork, build_network
from ztw.predictions import predict
from ztw.progress import Report
from ztw.regimes import exit_weights, train_jointly, train_layer_wise
from ztw.training import History, Recipe, train_backbone, train_ics

Settings = Mapping[str, Any]
Cell = Mapping[str, Any]  # {"dataset": ..., "arch": ..., "seed": ...}


def set_up(threads: int) -> None:
    """Use as many threads as the scheduler gave this job, and only deterministic algorithms."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def make_recipe(section: Settings, precision: str, compile: bool = False) -> Recipe:
    """The recipe in a config section, complete as `ztw.cells` leaves it."""
    values = {field: section[field] for field in RECIPE}
    return Recipe(
        **{**values, "milestones": tuple(section["milestones"])}, precision=precision, compile=compile
    )


def compute_on(settings: Settings) -> tuple[torch.device, str]:
    """The device and the resolved precision of a study."""
    device = pick_device(settings["device"])
    return device, resolve_precision(settings["precision"], device)


def _split(prepared: dict, split: str, settings: Settings) -> Data:
    """One split with the study's own choice of normalisation and augmentation."""
    data = load_split(prepared, split)
    known = {field.name for field in dataclasses.fields(cast(Any, data))}
    chosen = ("flip", "crop_padding", "colour_jitter", "mean", "std")
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in settings["data"].items()
        if key in chosen and key in known and value is not None
    }
    changed: Data = dataclasses.replace(cast(Any, data), **given)
    return changed


def data_parts(prepared: dict, cell: Cell, settings: Settings) -> dict[str, Data]:
    """ "train", "validation" and "test": the same split in every job of a cell.

    The validation part is taken from the training images, or from the test images where weights that
    were not trained here have seen all of the former.
    """
    parts = {split: _split(prepared, split, settings) for split in ("train", "test")}
    source = settings["data"]["validation_from"]
    fraction = settings["data"]["validation_fraction"]
    rest, held_out = held_out_split(parts[source].labels, fraction, seed=int(cell["seed"]))
    return {**parts, source: parts[source].take(rest), "validation": parts[source].take(held_out)}


def _empty_backbone(prepared: dict, cell: Cell, settings: Settings, weights: str | None = None) -> Backbone:
    """The cell's backbone with random weights, or torchvision's."""
    size = (prepared["classes"], prepared["channels"], prepared["size"])
    return build_backbone(cell["arch"], *size, shortcut=settings["backbone"]["shortcut"], weights=weights)


def _identity(prepared: dict, cell: Cell) -> dict[str, Any]:
    """The facts a checkpoint must share with the job that loads it."""
    return {
        "arch": cell["arch"],
        "dataset": cell["dataset"],
        "seed": int(cell["seed"]),
        "classes": prepared["classes"],
        "input_shape": [prepared["channels"], prepared["size"], prepared["size"]],
    }


def _trained_backbone(prepared: dict, cell: Cell, settings: Settings, file: Path | str) -> Backbone:
    backbone = _empty_backbone(prepared, cell, settings)
    load_checkpoint(file, backbone, _identity(prepared, cell))
    return backbone


def trains_trunk(ics: Settings) -> bool:
    """Whether an IC set changes the backbone: its checkpoint then holds the whole network."""
    return ics["training"] != "separate"


def _trained_part(network: EarlyExitNetwork, ics: Settings) -> nn.Module:
    return network if trains_trunk(ics) else network.heads


def load_network(
    cell: Cell, settings: Settings, prepared: dict, backbone_file: Path | str, name: str, ics_file: Path | str
) -> EarlyExitNetwork:
    """The trained network of one IC set, on the CPU in eval mode; raises ZtwError when a checkpoint does not fit."""
    ics = settings["ics"]["sets"][name]
    network = _attach(_trained_backbone(prepared, cell, settings, backbone_file), ics)
    trained_as = {"ics": name, "mode": network.ics, "placement": list(network.placement)}
    load_checkpoint(ics_file, _trained_part(network, ics), {**_identity(prepared, cell), **trained_as})
    return network.eval()


def _attach(backbone: Backbone, ics: Settings) -> EarlyExitNetwork:
    options = {key: ics[key] for key in ANATOMY}
    return build_network(backbone, ics["mode"], **options)


def _share(networks: list[EarlyExitNetwork], device: torch.device) -> list[EarlyExitNetwork]:
    """Give all networks the first one's backbone object, on `device`."""
    for network in networks:
        network.backbone = networks[0].backbone
        network.to(device)
    return networks


def _accuracy(backbone: Backbone, data: Data, precision: str, batch_size: int) -> float:
    plain = EarlyExitNetwork(backbone, [], (), "independent")
    (logits,), labels = predict([plain], data, batch_size, precision)
    return float((logits[0].argmax(-1) == labels).double().mean())


def _first_weights(
    prepared: dict, cell: Cell, settings: Settings, root: Path, report: Report
) -> tuple[Backbone, dict[str, Any]]:
    """The backbone before any training of ours, and where its weights come from."""
    section = settings["backbone"]
    source = section["source"]
    backbone = _empty_backbone(prepared, cell, settings, "DEFAULT" if source == "torchvision" else None)
    if source in ("train", "torchvision"):
        return backbone, {"source": source}
    path = Path(section["path"]) if source == "file" else None
    path = path or fetch_weights(section["url"], section["sha256"], root, report)
    if section["sha256"] and (found := sha256(path)) != section["sha256"]:
        raise ZtwError(f"{path}: SHA-256 is {found}, backbone.sha256 says {section['sha256']}")
    matched = load_foreign(backbone, read_foreign(path), str(path))
    report(f"weights of {path} matched {matched}")
    return backbone, {"source": source, "file": path.name, "sha256": sha256(path), "matched": matched}


def run_train_backbone(
    cell: Cell, settings: Settings, prepared_file: str, output: str, report: Report
) -> None:
    """Make a backbone ready, from its source and by training; writes weights and JSON."""
    prepared = read_json(prepared_file)
    device, precision = compute_on(settings)
    parts = data_parts(prepared, cell, settings)
    section, seed = settings["backbone"], int(cell["seed"])
    torch.manual_seed(seed)
    root = data_root(settings["data"]["root"])
    backbone, origin = _first_weights(prepared, cell, settings, root, report)
    if section["source"] == "torchvision" and prepared["classes"] != 1000 and not section["epochs"]:
        raise ZtwError(
            f"backbone.epochs: 0: torchvision's weights answer 1000 classes, {cell['dataset']} has"
            f" {prepared['classes']}; train the new last layer for some epochs"
        )
    backbone.to(device).eval()
    recipe = make_recipe(section, precision, settings["compile"])
    train = parts["train"].to(device)
    history = train_backbone(backbone, train, recipe, seed, report) if section["epochs"] else []
    validation = parts["validation"].to(device)
    facts = {
        **_identity(prepared, cell),
        "settings": section,
        "origin": origin,
        "accuracy": {"validation": _accuracy(backbone, validation, precision, recipe.batch_size)},
        "history": history,
        **_provenance(device, precision),
    }
    save_checkpoint(output, backbone, facts)


def device_name(device: torch.device) -> str:
    """What a result was computed on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _provenance(device: torch.device, precision: str) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _save_ics(
    cell: Cell,
    prepared: dict,
    name: str,
    ics: Settings,
    network: EarlyExitNetwork,
    history: History,
    where: dict[str, Any],
    output: str,
) -> None:
    facts = {
        **_identity(prepared, cell),
        "ics": name,
        "mode": network.ics,
        "placement": list(network.placement),
        "settings": ics,
        "history": history,
        **where,
    }
    save_checkpoint(output, _trained_part(network, ics), facts)


def run_train_ics(
    cell: Cell,
    settings: Settings,
    prepared_file: str,
    backbone_file: str,
    outputs: Mapping[str, str],
    report: Report,
) -> None:
    """Train the IC sets on the frozen backbone; outputs: IC set -> file. Sets of one recipe share a pass."""
    prepared = read_json(prepared_file)
    device, precision = compute_on(settings)
    train = data_parts(prepared, cell, settings)["train"].to(device)
    backbone = _trained_backbone(prepared, cell, settings, backbone_file)
    sets, seed = settings["ics"]["sets"], int(cell["seed"])
    for recipe, names in _by_recipe(sets, outputs, precision, settings["compile"]).items():
        networks = []
        for name in names:
            torch.manual_seed(seed)  # a set's weights do not depend on which others are trained with it
            networks.append(_attach(backbone, sets[name]))
        histories = train_ics(_share(networks, device), train, recipe, seed, report)
        for name, network, history in zip(names, networks, histories, strict=True):
            where = _provenance(device, precision)
            _save_ics(cell, prepared, name, sets[name], network, history, where, outputs[name])


def _by_recipe(
    sets: Settings, names: Iterable[str], precision: str, compile: bool
) -> dict[Recipe, list[str]]:
    groups: dict[Recipe, list[str]] = {}
    for name in names:
        groups.setdefault(make_recipe(sets[name]["recipe"], precision, compile), []).append(name)
    return groups


def _asked_shares(placement: Any) -> list[float] | None:
    """The shares of the cost at which a study asks for its exits, where it says so."""
    fractions = not isinstance(placement, str) and any(isinstance(item, float) for item in placement)
    return list(placement) if fractions else None


def run_train_network(
    cell: Cell,
    settings: Settings,
    prepared_file: str,
    backbone_file: str | None,
    name: str,
    output: str,
    report: Report,
) -> None:
    """Train trunk and ICs of one set, jointly or layer after layer; backbone_file: None starts from scratch."""
    prepared = read_json(prepared_file)
    device, precision = compute_on(settings)
    train = data_parts(prepared, cell, settings)["train"].to(device)
    ics, seed = settings["ics"]["sets"][name], int(cell["seed"])
    torch.manual_seed(seed)
    if backbone_file is None:  # from scratch
        backbone = _empty_backbone(prepared, cell, settings)
    else:
        backbone = _trained_backbone(prepared, cell, settings, backbone_file)
    network = _attach(backbone, ics).to(device)
    recipe = make_recipe(ics["recipe"], precision, settings["compile"])
    if ics["training"] == "layer_wise":
        history = train_layer_wise(network, train, recipe, seed, report)
    else:
        weights = exit_weights(network, ics["exit_weights"], _asked_shares(ics["placement"]))
        history = train_jointly(network, train, recipe, seed, weights, ics["rescale_gradients"], report)
    _save_ics(cell, prepared, name, ics, network, history, _provenance(device, precision), output)


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
        together = _share([networks[name] for name in names], device)
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


def load_ensemble(path: Path | str, ics: str, title: str) -> Ensemble:
    """A fitted ensemble; raises ZtwError when its files are broken or it is another IC set's."""
    facts = read_json(Path(path).with_suffix(".json"))
    ensemble = build_ensemble(facts["kind"], facts["exits"], facts["classes"], facts["include_final"])
    load_checkpoint(path, ensemble, {"ics": ics, "ensemble": title})
    return ensemble


def read_predictions(path: Path | str) -> tuple[Tensor, Tensor]:
    """(logits, labels) as `run_predict` wrote them."""
    tensors = read_tensors(path)
    return tensors["logits"], tensors["labels"]
