"""The job that trains a cell's IC sets on its frozen backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ztw.data.splits import cell_splits
from ztw.jobs.cell import CellNetworks, share_backbone
from ztw.jobs.training import Computing, save_ics
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.training.recipe import Recipe
from ztw.training.resume import Checkpoints
from ztw.training.separate import train_separately


def train_ics(
    networks: CellNetworks,
    data: DataSettings,
    hardware: HardwareSettings,
    outputs: Mapping[str, str],
    checkpoints: Checkpoints,
) -> None:
    """Train the IC sets on the frozen backbone; outputs: IC set -> file. Sets trained alike share a pass."""
    computing, seed = Computing.of(hardware), networks.cell.seed
    training = cell_splits(networks.record, data, seed, checkpoints.report)["train"].to(computing.device)
    backbone = networks.backbone()
    for number, (recipe, names) in enumerate(_trained_alike(networks, outputs, computing).items()):
        together = []
        for name in names:
            torch.manual_seed(seed)  # a set's weights do not depend on which others are trained with it
            together.append(networks.attach(backbone, name))
        torch.manual_seed(seed)  # of dropout: the same whatever sets there are
        share_backbone(together, computing.device)
        kept = checkpoints.phase(f"pass-{number}")
        histories = train_separately(together, training, recipe, seed, checkpoints.report, kept)
        for name, network, history in zip(names, together, histories, strict=True):
            save_ics(networks, name, network, computing.facts(history, checkpoints), outputs[name])
    checkpoints.clear()


def _trained_alike(
    networks: CellNetworks, names: Iterable[str], computing: Computing
) -> dict[Recipe, list[str]]:
    """Recipe -> the sets that are trained so."""
    groups: dict[Recipe, list[str]] = {}
    for name in names:
        groups.setdefault(computing.recipe(networks.sets[name]), []).append(name)
    return groups
