"""The job that makes a cell's backbone ready, from its source and by training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ztw.data.dataset import Data
from ztw.data.splits import data_parts
from ztw.errors import ZtwError
from ztw.evaluation.predictions import predict
from ztw.files import data_root, read_json, sha256
from ztw.jobs.cell import (
    Cell,
    Settings,
    _provenance,
    compute_on,
    empty_backbone,
    identity,
    make_recipe,
)
from ztw.models.backbone import Backbone
from ztw.models.checkpoints import save_checkpoint
from ztw.models.import_weights import fetch_weights, load_foreign, read_foreign
from ztw.models.network import EarlyExitNetwork
from ztw.progress import Report
from ztw.training.separate import train_backbone


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
