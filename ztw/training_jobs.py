"""The jobs that train: a cell's backbone, its ICs on the frozen backbone, trunk and ICs together.

The workflow's scripts are one call of a function here; `settings` is the checked config.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ztw.backbone import Backbone
from ztw.checkpoints import save_checkpoint, versions
from ztw.data import Data
from ztw.errors import ZtwError
from ztw.fetch import data_root
from ztw.files import read_json, sha256
from ztw.foreign import fetch_weights, load_foreign, read_foreign
from ztw.jobs import (
    Cell,
    Settings,
    attach,
    compute_on,
    data_parts,
    device_name,
    empty_backbone,
    identity,
    share_backbone,
    trained_backbone,
    trained_part,
)
from ztw.names import RECIPE
from ztw.network import EarlyExitNetwork
from ztw.predictions import predict
from ztw.progress import Report
from ztw.regimes import exit_weights, train_jointly, train_layer_wise
from ztw.training import History, Recipe, train_backbone, train_ics


def make_recipe(section: Settings, precision: str, compile: bool | Literal["auto"] = False) -> Recipe:
    """The recipe in a config section, complete as `ztw.cells` leaves it."""
    values = {field: section[field] for field in RECIPE}
    return Recipe(
        **{**values, "milestones": tuple(section["milestones"])}, precision=precision, compile=compile
    )


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
    backbone = empty_backbone(prepared, cell, settings, "DEFAULT" if source == "torchvision" else None)
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
        **identity(prepared, cell),
        "settings": section,
        "origin": origin,
        "accuracy": {"validation": _accuracy(backbone, validation, precision, recipe.batch_size)},
        "history": history,
        **_provenance(device, precision),
    }
    save_checkpoint(output, backbone, facts)


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
        **identity(prepared, cell),
        "ics": name,
        "mode": network.ics,
        "placement": list(network.placement),
        "settings": ics,
        "history": history,
        **where,
    }
    save_checkpoint(output, trained_part(network, ics), facts)


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
    backbone = trained_backbone(prepared, cell, settings, backbone_file)
    sets, seed = settings["ics"]["sets"], int(cell["seed"])
    for recipe, names in _by_recipe(sets, outputs, precision, settings["compile"]).items():
        networks = []
        for name in names:
            torch.manual_seed(seed)  # a set's weights do not depend on which others are trained with it
            networks.append(attach(backbone, sets[name]))
        histories = train_ics(share_backbone(networks, device), train, recipe, seed, report)
        for name, network, history in zip(names, networks, histories, strict=True):
            where = _provenance(device, precision)
            _save_ics(cell, prepared, name, sets[name], network, history, where, outputs[name])


def _by_recipe(
    sets: Settings, names: Iterable[str], precision: str, compile: bool | Literal["auto"]
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
        backbone = empty_backbone(prepared, cell, settings)
    else:
        backbone = trained_backbone(prepared, cell, settings, backbone_file)
    network = attach(backbone, ics).to(device)
    recipe = make_recipe(ics["recipe"], precision, settings["compile"])
    if ics["training"] == "layer_wise":
        history = train_layer_wise(network, train, recipe, seed, report)
    else:
        weights = exit_weights(network, ics["exit_weights"], _asked_shares(ics["placement"]))
        history = train_jointly(network, train, recipe, seed, weights, ics["rescale_gradients"], report)
    _save_ics(cell, prepared, name, ics, network, history, _provenance(device, precision), output)
