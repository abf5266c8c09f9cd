"""Load or build a cell's backbone and train it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ztw.data.dataset import Data
from ztw.data.splits import cell_splits, open_split
from ztw.device import Compute
from ztw.errors import ZtwError
from ztw.evaluation.predictions import predict_networks
from ztw.files import data_root, sha256
from ztw.jobs.cell import CellNetworks, StaticNetwork, compute_on
from ztw.jobs.job import Job
from ztw.jobs.training import job_checkpoints, recipe_of, training_metadata
from ztw.models.backbone import Backbone
from ztw.models.checkpoints import save_checkpoint
from ztw.models.import_weights import fetch_weights, load_foreign, read_foreign
from ztw.models.network import static_network
from ztw.progress import Note, Report
from ztw.study.layout import Cell
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneSettings
from ztw.training.distillation import Distillation
from ztw.training.separate import train_backbone as train

PRETRAINED = {"default": "DEFAULT", "v1": "IMAGENET1K_V1"}  # torchvision's names
TOLERANCE = 0.01  # allowed difference of accuracies: rounding, other image decoders
IN_ORDER = (
    ": the names differ, and equal order and shapes do not prove the same computation;"
    " set backbone.expected_accuracy to check it"
)


@dataclass(frozen=True)
class Taught:
    """The teacher of a static network, and how it learns from it."""

    teacher: StaticNetwork
    weight: float
    temperature: float


@dataclass(frozen=True)
class TrainBackboneSettings:
    """Settings that a backbone's weights depend on.

    Args:
        root: the folder of downloaded weights.
        weights: stamp of the weights file in the study.
        arch: its architecture; None = the cell's.
        distillation: how it learns from a teacher; None = it has none.
    """

    images: DataSettings
    root: str | None
    backbone: BackboneSettings
    hardware: HardwareSettings
    weights: str | None = None
    arch: str | None = None
    distillation: Taught | None = None


def train_backbone(job: Job, cell: Cell, settings: TrainBackboneSettings) -> None:
    """Load or build a backbone, train it, and write its weights and metadata."""
    images, backbone_settings = settings.images, settings.backbone
    networks = CellNetworks(
        job.layout,
        cell,
        backbone_settings,
        records=records_of(images, backbone_settings),
        static_arch=settings.arch,
    )
    checkpoints = job_checkpoints(job, cell, "backbone")
    compute = compute_on(settings.hardware)
    recipe = recipe_of(backbone_settings, settings.hardware, compute)
    device, parts = compute.device, cell_splits(networks.record, images, cell.seed, job.report)
    torch.manual_seed(cell.seed)
    backbone, origin = _first_weights(networks, backbone_settings, data_root(settings.root), job.report)
    backbone.to(device).eval()
    if backbone_settings.expected_accuracy is not None:
        test = open_split(networks.record, images, "test").to(device)
        origin["test_accuracy"] = _check_accuracy(backbone, test, backbone_settings, compute)
    training, history = parts["train"].to(device), []
    if backbone_settings.epochs:
        teacher = _teacher(networks, settings.distillation, device)
        history = train(backbone, training, recipe, cell.seed, job.report, checkpoints, teacher)
    accuracy = {}
    if "validation" in parts:
        held_out = parts["validation"].to(device)
        accuracy["validation"] = _accuracy(backbone, held_out, compute, recipe.batch_size)
    metadata = {
        **networks.identity,
        "class_names": networks.record["class_names"],
        "settings": backbone_settings.model_dump(),
        "teacher": settings.distillation and settings.distillation.teacher.network,
        "origin": origin,
        "accuracy": accuracy,
        **training_metadata(compute, history, checkpoints),
    }
    save_checkpoint(job.layout.backbone(cell), backbone, metadata)
    checkpoints.clear()


def _teacher(
    networks: CellNetworks, taught: Taught | None, device: torch.device
) -> tuple[Backbone, Distillation] | None:
    if taught is None:
        return None
    teacher = networks.of_static(taught.teacher).backbone().to(device)
    return teacher, Distillation(taught.weight, taught.temperature)


def records_of(images: DataSettings, backbone: BackboneSettings) -> tuple[str, ...]:
    """Return the splits that a backbone depends on, "test" included if an accuracy is expected."""
    return images.training_records if backbone.expected_accuracy is None else ("train", "test")


def _first_weights(
    networks: CellNetworks, settings: BackboneSettings, root: Path, report: Report
) -> tuple[Backbone, dict[str, Any]]:
    """Return the backbone before training, and the origin of its weights."""
    source, num_classes = settings.source, networks.record["num_classes"]
    if source == "torchvision" and num_classes != 1000 and not settings.epochs:
        raise ZtwError(
            f"backbone.epochs: 0: torchvision's weights predict 1000 classes, {networks.cell.dataset} has"
            f" {num_classes}; set epochs above 0 to train the new last layer"
        )
    backbone = networks.untrained_backbone(
        PRETRAINED[settings.pretrained] if source == "torchvision" else None
    )
    if source == "torchvision" and num_classes != 1000:
        report(
            Note(
                f"torchvision's weights: the last layer predicts 1000 classes, not {num_classes};"
                " a new layer replaces it"
            )
        )
    if source in ("train", "torchvision"):
        return backbone, {"source": source}
    path = _weights_file(settings, root, report)
    matched = load_foreign(backbone, read_foreign(path, report), str(path), settings.epochs > 0, report)
    told = f"weights of {path} matched {matched}"
    report(told if matched == "by name" else Note(told + IN_ORDER))
    return backbone, {"source": source, "file": path.name, "sha256": sha256(path), "matched": matched}


def _weights_file(settings: BackboneSettings, root: Path, report: Report) -> Path:
    """Return the file of foreign weights, downloaded if necessary and checked."""
    if settings.source == "url":
        return fetch_weights(str(settings.url), str(settings.sha256), root, report)
    path = Path(str(settings.path)).expanduser()
    if settings.sha256 and (found := sha256(path)) != settings.sha256:
        raise ZtwError(f"{path}: SHA-256 is {found}, backbone.sha256 says {settings.sha256}")
    return path


def _check_accuracy(backbone: Backbone, test: Data, settings: BackboneSettings, compute: Compute) -> float:
    """Measure the accuracy of foreign weights and compare it with the expected one."""
    found = _accuracy(backbone, test, compute, settings.batch_size)
    expected = settings.expected_accuracy
    if expected is not None and abs(found - expected) > TOLERANCE:
        raise ZtwError(
            f"backbone.expected_accuracy: the accuracy on {len(test)} test images is {found:.4f}, expected {expected:g}"
            f" within {TOLERANCE:g}; the weights may need another data.mean and data.std, or belong to another network"
        )
    return found


def _accuracy(backbone: Backbone, data: Data, compute: Compute, batch_size: int) -> float:
    (logits,), labels = predict_networks([static_network(backbone)], data, batch_size, compute)
    return float((logits[0].argmax(-1) == labels).double().mean())
