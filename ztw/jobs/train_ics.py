"""The job that trains a cell's IC sets on its frozen backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ztw.data.splits import cell_splits
from ztw.jobs.cell import CellNetworks, share_backbone
from ztw.jobs.training import Computing, save_ics
from ztw.progress import Report
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.training.loop import Recipe
from ztw.training.separate import train_ics as train


def train_ics(
    networks: CellNetworks,
    data: DataSettings,
    hardware: HardwareSettings,
    outputs: Mapping[str, str],
    report: Report,
) -> None:
    """Train the IC sets on the frozen backbone; outputs: IC set -> file. Sets trained alike share a pass."""
    computing, seed = Computing.of(hardware), networks.cell.seed
    training = cell_splits(networks.record, data, seed, report)["train"].to(computing.device)
    backbone = networks.backbone()
    for (recipe, dropout), names in _trained_alike(networks, outputs, computing).items():
        together = []
        for name in names:
            torch.manual_seed(seed)  # a set's weights do not depend on which others are trained with it
            together.append(networks.attach(backbone, name))
        torch.manual_seed(seed)  # of dropout: the same whatever sets there are
        share_backbone(together, computing.device)
        histories = train(together, training, recipe, seed, report, dropout)
        for name, network, history in zip(names, together, histories, strict=True):
            save_ics(networks, name, network, history, computing, outputs[name])


def _trained_alike(
    networks: CellNetworks, names: Iterable[str], computing: Computing
) -> dict[tuple[Recipe, bool], list[str]]:
    """(recipe, dropout of the frozen backbone) -> the sets that are trained so."""
    groups: dict[tuple[Recipe, bool], list[str]] = {}
    for name in names:
        ics = networks.sets[name]
        groups.setdefault((computing.recipe(ics), ics.frozen_dropout), []).append(name)
    return groups
