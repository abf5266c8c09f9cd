"""Train a cell's IC sets on its frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ztw.data.splits import cell_splits
from ztw.device import Compute
from ztw.jobs.cell import CellNetworks, compute_on, share_backbone
from ztw.jobs.job import Job
from ztw.jobs.training import job_checkpoints, recipe_of, save_ics, training_metadata
from ztw.study.layout import Cell
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, IcSet
from ztw.training.recipe import Recipe
from ztw.training.separate import train_separately


@dataclass(frozen=True)
class TrainIcsSettings:
    """Settings that the weights of the IC sets depend on."""

    images: DataSettings
    build: BackboneBuild
    sets: dict[str, IcSet]
    hardware: HardwareSettings


def train_ics(job: Job, cell: Cell, settings: TrainIcsSettings) -> None:
    """Train the IC sets on the frozen backbone. Sets with the same recipe are trained together, in one pass."""
    networks = CellNetworks(
        job.layout, cell, settings.build, settings.sets, records=settings.images.training_records
    )
    checkpoints, compute = job_checkpoints(job, cell, "ics"), compute_on(settings.hardware)
    parts = cell_splits(networks.record, settings.images, cell.seed, job.report)
    training, backbone = parts["train"].to(compute.device), networks.backbone()
    for number, (recipe, names) in enumerate(_by_recipe(settings, compute).items()):
        together = []
        for name in names:
            torch.manual_seed(cell.seed)  # a set's weights must not depend on the other sets
            together.append(networks.attach(backbone, name))
        torch.manual_seed(cell.seed)  # dropout must not depend on them either
        share_backbone(together, compute.device)
        kept = checkpoints.phase(f"pass-{number}")
        histories = train_separately(together, training, recipe, cell.seed, job.report, kept)
        for name, network, history in zip(names, together, histories, strict=True):
            save_ics(networks, name, network, training_metadata(compute, history, checkpoints))
    checkpoints.clear()


def _by_recipe(settings: TrainIcsSettings, compute: Compute) -> dict[Recipe, list[str]]:
    groups: dict[Recipe, list[str]] = {}
    for name, ics in settings.sets.items():
        groups.setdefault(recipe_of(ics, settings.hardware, compute), []).append(name)
    return groups
