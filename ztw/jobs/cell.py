"""What the jobs of a cell (dataset, arch, seed) share: its data, its networks, its files.

`settings` is the checked config; the jobs themselves are in training_jobs, evaluation_jobs and latency.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ztw.device import device_name, keep_freed_memory, pick_device, resolve_precision
from ztw.exits.ensembles import Ensemble, build_ensemble
from ztw.exits.logits import read_predictions
from ztw.files import read_json
from ztw.models.architectures import build_backbone
from ztw.models.backbone import Backbone
from ztw.models.checkpoints import load_checkpoint, save_checkpoint, versions
from ztw.models.network import EarlyExitNetwork, build_network
from ztw.study.names import ANATOMY, RECIPE
from ztw.training.loop import History, Recipe

Settings = Mapping[str, Any]
Cell = Mapping[str, Any]  # {"dataset": ..., "arch": ..., "seed": ...}


def compute_on(settings: Settings) -> tuple[torch.device, str]:
    """The device and the resolved precision of a study, for a job that computes with a network.

    Such a job keeps its freed memory; those on logits alone have few large arrays, and hold less without.
    """
    keep_freed_memory()
    device = pick_device(settings["device"])
    return device, resolve_precision(settings["precision"], device)


def empty_backbone(prepared: dict, cell: Cell, settings: Settings, weights: str | None = None) -> Backbone:
    """The cell's backbone with random weights, or torchvision's."""
    size = (prepared["classes"], prepared["channels"], prepared["size"])
    return build_backbone(cell["arch"], *size, shortcut=settings["backbone"]["shortcut"], weights=weights)


def identity(prepared: dict, cell: Cell) -> dict[str, Any]:
    """The facts a checkpoint must share with the job that loads it."""
    return {
        "arch": cell["arch"],
        "dataset": cell["dataset"],
        "seed": int(cell["seed"]),
        "classes": prepared["classes"],
        "input_shape": [prepared["channels"], prepared["size"], prepared["size"]],
    }


def trained_backbone(prepared: dict, cell: Cell, settings: Settings, file: Path | str) -> Backbone:
    """The cell's backbone with the weights in `file`; raises ZtwError when it is another one's."""
    backbone = empty_backbone(prepared, cell, settings)
    load_checkpoint(file, backbone, identity(prepared, cell))
    return backbone


def trains_trunk(ics: Settings) -> bool:
    """Whether an IC set changes the backbone: its checkpoint then holds the whole network."""
    return ics["training"] != "separate"


def trained_part(network: EarlyExitNetwork, ics: Settings) -> nn.Module:
    """What the checkpoint of an IC set holds: the ICs, or the whole network where the trunk was trained as well."""
    return network if trains_trunk(ics) else network.heads


def load_network(
    cell: Cell, settings: Settings, prepared: dict, backbone_file: Path | str, name: str, ics_file: Path | str
) -> EarlyExitNetwork:
    """The trained network of one IC set, on the CPU in eval mode; raises ZtwError when a checkpoint does not fit."""
    ics = settings["ics"]["sets"][name]
    network = attach(trained_backbone(prepared, cell, settings, backbone_file), ics)
    trained_as = {"ics": name, "mode": network.ics, "placement": list(network.placement)}
    load_checkpoint(ics_file, trained_part(network, ics), {**identity(prepared, cell), **trained_as})
    return network.eval()


def attach(backbone: Backbone, ics: Settings) -> EarlyExitNetwork:
    """Untrained ICs on a backbone, as a set of the study says."""
    options = {key: ics[key] for key in ANATOMY}
    return build_network(backbone, ics["mode"], **options)


def share_backbone(networks: list[EarlyExitNetwork], device: torch.device) -> list[EarlyExitNetwork]:
    """Give all networks the first one's backbone object, on `device`."""
    for network in networks:
        network.backbone = networks[0].backbone
        network.to(device)
    return networks


def load_ensemble(path: Path | str, ics: str, title: str) -> Ensemble:
    """A fitted ensemble; raises ZtwError when its files are broken or it is another IC set's."""
    facts = read_json(Path(path).with_suffix(".json"))
    ensemble = build_ensemble(facts["kind"], facts["exits"], facts["classes"], facts["include_final"])
    load_checkpoint(path, ensemble, {"ics": ics, "ensemble": title})
    return ensemble


@dataclasses.dataclass(frozen=True)
class CellFiles:
    """Where a cell's results are: the data set's record, the backbone, IC set -> weights,
    (IC set, split) -> logits, (IC set, ensemble) -> weights."""

    prepared: str
    backbone: str
    ics: Mapping[str, str]
    predictions: Mapping[tuple[str, str], str]
    ensembles: Mapping[tuple[str, str], str]

    @classmethod
    def of(
        cls, files: Any, sets: Iterable[str], splits: Iterable[str], ensembles: Sequence[tuple[str, str]]
    ) -> CellFiles:
        """From a rule's inputs: `data`, `backbone`, and, in this order, `ics`, `predictions`, `ensembles`."""
        of_split = product(list(sets), splits)
        return cls(
            files.data,
            files.backbone,
            dict(zip(sets, files.ics, strict=True)),
            dict(zip(of_split, files.predictions, strict=True)),
            dict(zip(((ics, name) for ics, name in ensembles), files.ensembles, strict=True)),
        )


def load_method(cell: Cell, settings: Settings, files: CellFiles, name: str) -> EarlyExitNetwork:
    """The trained network a method answers with, its fitted ensemble included, on the CPU in eval mode."""
    ics, title = (settings["methods"][name][key] for key in ("ics", "ensemble"))
    prepared = read_json(files.prepared)
    network = load_network(cell, settings, prepared, files.backbone, ics, files.ics[ics])
    if title is not None:
        network.ensemble = load_ensemble(files.ensembles[ics, title], ics, title)
    return network


def method_logits(
    network: EarlyExitNetwork, settings: Settings, files: CellFiles, name: str, split: str
) -> tuple[Tensor, Tensor]:
    """(logits (K, N, C), labels (N,)) a method decides and answers with on a split, ensembled if it has one."""
    logits, labels = read_predictions(files.predictions[settings["methods"][name]["ics"], split])
    return (network.ensemble(logits) if network.ensemble else logits), labels


def make_recipe(section: Settings, precision: str, compile: bool | Literal["auto"] = False) -> Recipe:
    """The recipe in a config section, complete as `ztw.cells` leaves it."""
    values = {field: section[field] for field in RECIPE}
    return Recipe(
        **{**values, "milestones": tuple(section["milestones"])}, precision=precision, compile=compile
    )


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
