"""Train backbone and ICs of one IC set, jointly or layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ztw.data.splits import cell_splits
from ztw.jobs.cell import CellNetworks, compute_on
from ztw.jobs.job import Job
from ztw.jobs.training import distillation_of, job_checkpoints, recipe_of, save_ics, training_metadata
from ztw.study.layout import Cell
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, IcSet
from ztw.training.joint import JointLoss, Shares, equal_shares, exit_weights, own_exit_only, train_jointly
from ztw.training.layer_wise import train_layer_wise


@dataclass(frozen=True)
class TrainNetworkSettings:
    """Settings that the weights of the network depend on."""

    images: DataSettings
    build: BackboneBuild
    set: IcSet
    hardware: HardwareSettings


def train_network(job: Job, cell: Cell, ics: str, settings: TrainNetworkSettings) -> None:
    """Train backbone and ICs of the IC set `ics`, from scratch or from the cell's backbone."""
    images, of_set = settings.images, settings.set
    networks = CellNetworks(job.layout, cell, settings.build, {ics: of_set}, records=images.training_records)
    checkpoints = job_checkpoints(job, cell, f"ics-{ics}")
    compute = compute_on(settings.hardware)
    recipe = recipe_of(of_set, settings.hardware, compute)
    training = cell_splits(networks.record, images, cell.seed, job.report)["train"].to(compute.device)
    torch.manual_seed(cell.seed)
    backbone = networks.untrained_backbone() if of_set.start == "scratch" else networks.backbone()
    network = networks.attach(backbone, ics).to(compute.device)
    if of_set.training == "layer_wise":
        history = train_layer_wise(network, training, recipe, cell.seed, job.report, checkpoints)
    else:
        weights = exit_weights(network, of_set.exit_weights, of_set.asked_shares)
        loss = JointLoss(network, weights, _shares(of_set), distillation_of(of_set.distillation))
        history = train_jointly(loss, training, recipe, cell.seed, job.report, checkpoints)
    save_ics(networks, ics, network, training_metadata(compute, history, checkpoints))
    checkpoints.clear()


def _shares(ics: IcSet) -> Shares | None:
    if ics.stop_gradient:
        return own_exit_only
    return equal_shares if ics.rescale_gradients else None
