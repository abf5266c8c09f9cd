"""The job that trains backbone and ICs of one set, jointly or layer after layer."""

from __future__ import annotations

import torch

from ztw.data.splits import cell_splits
from ztw.jobs.cell import CellNetworks
from ztw.jobs.training import Computing, save_ics
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.training.joint import JointLoss, exit_weights, train_jointly
from ztw.training.layer_wise import train_layer_wise
from ztw.training.resume import Checkpoints


def train_network(
    networks: CellNetworks,
    name: str,
    data: DataSettings,
    hardware: HardwareSettings,
    output: str,
    checkpoints: Checkpoints,
) -> None:
    """Train backbone and ICs of the set `name`; from scratch where the cell's files name no backbone."""
    computing, seed, ics = Computing.of(hardware), networks.cell.seed, networks.sets[name]
    training = cell_splits(networks.record, data, seed, checkpoints.report)["train"].to(computing.device)
    torch.manual_seed(seed)
    network = networks.attach(networks.backbone(), name).to(computing.device)
    recipe = computing.recipe(ics)
    if ics.training == "layer_wise":
        history = train_layer_wise(network, training, recipe, seed, checkpoints.report, checkpoints)
    else:
        weights = exit_weights(network, ics.exit_weights, ics.asked_shares)
        loss = JointLoss(network, weights, ics.rescale_gradients)
        history = train_jointly(loss, training, recipe, seed, checkpoints.report, checkpoints)
    save_ics(networks, name, network, computing.facts(history, checkpoints), output)
    checkpoints.clear()
