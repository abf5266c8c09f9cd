"""Compute the logits of a network in int8, in ONNX Runtime on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ztw.data.dataset import Data
from ztw.data.splits import cell_splits
from ztw.device import ON_CPU
from ztw.exits.rules import MaxSoftmax
from ztw.jobs.cell import CellNetworks
from ztw.jobs.exports import calibration_images, in_onnx_runtime
from ztw.jobs.job import Job
from ztw.jobs.predict import check_finite
from ztw.jobs.split_file import write_split
from ztw.onnx.runner import OnnxRunner
from ztw.progress import Progress, Report
from ztw.study.layout import ALONE, Cell
from ztw.study.settings import DataSettings
from ztw.study.training_settings import BackboneBuild, IcSet

BATCH = 256  # images that are read together


@dataclass(frozen=True)
class PredictInt8Settings:
    """Settings that the logits depend on.

    Args:
        sets: the IC set, if the network has one.
        arch: the architecture of the backbone.
        splits: the evaluated splits.
    """

    images: DataSettings
    build: BackboneBuild
    sets: dict[str, IcSet]
    arch: str
    splits: tuple[str, ...]


def predict_int8(job: Job, cell: Cell, network: str, settings: PredictInt8Settings) -> None:
    """Write the logits of all exits of a network in int8, on every evaluated split; network: an IC set, or ALONE."""
    networks = CellNetworks(job.layout, cell, settings.build, settings.sets, static_arch=settings.arch)
    parts = cell_splits(networks.record, settings.images, cell.seed, job.report)
    given = calibration_images(parts["train"], cell.seed)
    job.report("quantising")
    if network == ALONE:
        runner = in_onnx_runtime(networks.backbone(), None, given)
    else:  # the rule does not change the logits
        runner = in_onnx_runtime(networks.network(network), MaxSoftmax(0.5), given)
    for split in settings.splits:
        logits = _logits(runner, parts[split], job.report)
        path = job.layout.int8_predictions(cell, network, split)
        check_finite(logits, path, split)
        described = {"network": network, "split": split, **ON_CPU.describe(), "precision": "int8"}
        write_split(path, logits, parts[split].labels, described)


def _logits(runner: OnnxRunner, data: Data, report: Report) -> Tensor:
    """Compute the logits (K, N, C) of every exit."""
    progress = Progress(-(-len(data) // BATCH), report)
    found = []
    for images, _ in data.batches(BATCH):
        found.append(runner.logits(images))
        progress.step(lambda: f"{sum(part.shape[1] for part in found)} samples")
    return torch.cat(found, dim=1)
