"""The jobs that train: a cell's backbone, its ICs on the frozen backbone, trunk and ICs together.

The workflow's scripts are one call of a function here; `settings` is the checked config.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch

from ztw.data.splits import data_parts
from ztw.files import read_json
from ztw.jobs.cell import (
    Cell,
    Settings,
    _provenance,
    _save_ics,
    attach,
    compute_on,
    make_recipe,
    share_backbone,
    trained_backbone,
)
from ztw.progress import Report
from ztw.training.loop import Recipe
from ztw.training.separate import train_ics


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
