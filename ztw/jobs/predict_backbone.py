"""Compute the logits of a static network, a backbone without exits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ztw.data.splits import cell_splits
from ztw.evaluation import predictions
from ztw.jobs.cell import CellNetworks, compute_on
from ztw.jobs.job import Job
from ztw.jobs.predict import check_finite, drawn
from ztw.jobs.split_file import write_split
from ztw.models.network import static_network
from ztw.study.layout import Cell
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild


@dataclass(frozen=True)
class PredictBackboneSettings:
    """Settings that the logits depend on.

    Args:
        splits: "train" only if an ensemble of a cascade is fitted on it.
        samples: number of training images, None = all.
        arch: the network's, None = the cell's.
    """

    images: DataSettings
    build: BackboneBuild
    batch_size: int
    hardware: HardwareSettings
    splits: tuple[str, ...]
    samples: int | None = None
    arch: str | None = None


def predict_backbone(job: Job, cell: Cell, settings: PredictBackboneSettings) -> None:
    """Write the logits (1, N, C) of a cell's backbone on every split; training images are augmented."""
    networks = CellNetworks(job.layout, cell, settings.build, static_arch=settings.arch)
    compute = compute_on(settings.hardware)
    parts = cell_splits(networks.record, settings.images, cell.seed, job.report)
    generator = torch.Generator().manual_seed(cell.seed)  # all networks of a cascade see the same images
    parts["train"] = drawn(parts["train"], settings.samples, generator)
    network = static_network(networks.backbone()).to(compute.device).eval()
    for split in settings.splits:
        images = parts[split].to(compute.device)
        augmenter = generator if split == "train" else None
        (logits,), labels = predictions.predict_networks(
            [network], images, settings.batch_size, compute, augmenter, job.report
        )
        check_finite(logits, job.layout.backbone(cell), split)
        path = job.layout.backbone_predictions(cell, split)
        write_split(path, logits, labels, {"split": split, **compute.describe()})
