"""The job that trains backbone and ICs of one set, jointly or layer after layer."""

from __future__ import annotations

from typing import Any

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
    empty_backbone,
    make_recipe,
    trained_backbone,
)
from ztw.progress import Report
from ztw.training.joint import exit_weights, train_jointly
from ztw.training.layer_wise import train_layer_wise


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
