"""Build the networks of a cell by the study's settings, and load their weights from the files of other jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ztw.catalogue.architectures import CIFAR_RESNETS
from ztw.data.record import read_study_record
from ztw.device import Compute, keep_freed_memory, own_gpu, pick_device
from ztw.exits.ensembles import Ensemble, build_ensemble
from ztw.exits.logits import read_together
from ztw.files import read_json
from ztw.models.architectures import build_backbone
from ztw.models.backbone import Backbone
from ztw.models.building import build_network
from ztw.models.cascade import model_cascade
from ztw.models.checkpoints import load_checkpoint
from ztw.models.network import EarlyExitNetwork, static_network
from ztw.study.layout import ALONE, Cell, Layout, metadata
from ztw.study.settings import HardwareSettings, MethodSettings
from ztw.study.training_settings import Anatomy, BackboneBuild, IcSet


def compute_on(hardware: HardwareSettings) -> Compute:
    """Choose a job's device and precision by the study's settings; of several GPUs, one that no other job uses.

    Also keep freed memory for reuse, which makes networks faster. Jobs on logits alone do not call this function,
    because they have few large arrays.
    """
    keep_freed_memory()
    device = pick_device(own_gpu(hardware.device))
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # the default of generator states and synchronize()
    return Compute.on(device, hardware.precision)


@dataclass(frozen=True)
class StaticNetwork:
    """A network without early exits: its folder, architecture and options."""

    network: str
    arch: str
    build: BackboneBuild


@dataclass(frozen=True)
class CellNetworks:
    """Build and load the networks of a cell. Loading raises ZtwError if a file belongs to another cell.

    Args:
        build: options of the backbone.
        sets: the cell's IC sets.
        methods: the methods of the job.
        statics: static row -> its network, which has a cell of its own.
        records: the splits whose records the job reads, "train" first.
        static_arch: the architecture of a static network with a training of its own, whose cell has the method's name.
    """

    layout: Layout
    cell: Cell
    build: BackboneBuild = field(default_factory=BackboneBuild)
    sets: Mapping[str, IcSet] = field(default_factory=dict)
    methods: Mapping[str, MethodSettings] = field(default_factory=dict)
    statics: Mapping[str, StaticNetwork] = field(default_factory=dict)
    records: tuple[str, ...] = ("train", "test")
    static_arch: str | None = None

    @property
    def arch(self) -> str:
        """The architecture of the cell's backbone."""
        return self.static_arch or self.cell.arch

    def of_static(self, static: StaticNetwork) -> CellNetworks:
        """Return the cell of a static network."""
        cell = self.cell.with_arch(static.network)
        return CellNetworks(self.layout, cell, static.build, records=self.records, static_arch=static.arch)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The record of the prepared data set."""
        return read_study_record([self.layout.record(self.cell.dataset, split) for split in self.records])

    @property
    def identity(self) -> dict[str, Any]:
        """The metadata that a checkpoint must share with the job that loads it."""
        record = self.record
        return {
            "arch": self.arch,
            "dataset": self.cell.dataset,
            "seed": self.cell.seed,
            "num_classes": record["num_classes"],
            "input_shape": [record["channels"], record["size"], record["size"]],
            # Weights trained with another `ic_features` have the same shapes but predict something else
            "ic_features": self.build.ic_features if self.arch in CIFAR_RESNETS else None,
            "input_size": self.build.input_size,
        }

    def untrained_backbone(self, weights: str | None = None) -> Backbone:
        """Build the cell's backbone with random weights, or with torchvision's."""
        size = (self.record["num_classes"], self.record["channels"], self.record["size"])
        options = {key: getattr(self.build, key) for key in BackboneBuild.model_fields}
        return build_backbone(self.arch, *size, weights=weights, **options)

    def backbone(self) -> Backbone:
        """Load the cell's trained backbone."""
        backbone = self.untrained_backbone()
        load_checkpoint(self.layout.backbone(self.cell), backbone, self.identity)
        return backbone

    def attach(self, backbone: Backbone, name: str) -> EarlyExitNetwork:
        """Add the untrained ICs of an IC set to a backbone."""
        ics = self.sets[name]
        options = {key: getattr(ics, key) for key in Anatomy.model_fields}
        return build_network(backbone, ics.connection, progress=False, **options)

    def network(self, name: str) -> EarlyExitNetwork:
        """Load the trained network of an IC set, on the CPU in eval mode."""
        ics = self.sets[name]
        network = self.attach(self.backbone(), name)
        trained_as = {"ics": name, "connection": ics.connection, "placement": list(network.placement)}
        file = self.layout.ics(self.cell, name)
        load_checkpoint(file, trained_part(network, ics), {**self.identity, **trained_as})
        return network.eval()

    def members(self, name: str) -> list[CellNetworks]:
        """Return the cells of a method's static networks: of a cascade's networks, or of one static network."""
        method = self.methods[name]
        rows = method.cascade_of or ([name] if method.static else [])
        return [self.of_static(self.statics[row]) for row in rows]

    def source(self, name: str) -> str:
        """Return what a method's logits come from, see `Study.source_of`."""
        return self.methods[name].ics or "+".join(one.cell.arch for one in self.members(name))

    def of_method(self, name: str) -> EarlyExitNetwork:
        """Load the trained network of a method with its ensemble, on the CPU in eval mode."""
        backbones = [one.backbone() for one in self.members(name)]
        if len(backbones) == 1:
            return static_network(backbones[0]).eval()
        network = model_cascade(backbones) if backbones else self.network(self.methods[name].ics)
        network.ensemble = self.ensemble(name)
        return network

    def ensemble(self, name: str) -> Ensemble | None:
        """Load the fitted ensemble of a method, if it has one."""
        method, source = self.methods[name], self.source(name)
        if method.ensemble is None:
            return None
        return load_ensemble(
            self.layout.ensemble(self.cell, source, method.ensemble), source, method.ensemble
        )

    def predictions_files(self, name: str, split: str) -> list[Path]:
        """Return the paths of a method's predictions, one for each network of a cascade."""
        layout, method, members = self.layout, self.methods[name], self.members(name)
        if method.int8:
            networks = [(one.cell, ALONE) for one in members] or [(self.cell, method.ics)]
            return [layout.int8_predictions(*network, split) for network in networks]
        if members:
            return [layout.backbone_predictions(one.cell, split) for one in members]
        return [layout.predictions(self.cell, method.ics, split)]

    def predictions(self, network: EarlyExitNetwork, name: str, split: str) -> tuple[Tensor, Tensor]:
        """Read a method's logits (K, N, C), ensembled if `network` has an ensemble, and labels (N,)."""
        logits, labels = read_together(self.predictions_files(name, split))
        return (network.ensemble(logits) if network.ensemble else logits), labels


def trained_part(network: EarlyExitNetwork, ics: IcSet) -> nn.Module:
    """Return the part of a network in its checkpoint: the ICs, or the whole network if the set trains the backbone."""
    return network if ics.trains_backbone else network.heads


def share_backbone(networks: list[EarlyExitNetwork], device: torch.device) -> list[EarlyExitNetwork]:
    """Move all networks to `device` and let them share the backbone of the first."""
    for network in networks:
        network.backbone = networks[0].backbone
        network.to(device)
    return networks


def load_ensemble(path: Path, ics: str, title: str) -> Ensemble:
    """Load a fitted ensemble.

    Raises:
        ZtwError: if a file is broken or belongs to another IC set.
    """
    saved = read_json(metadata(path))
    ensemble = build_ensemble(saved["kind"], saved["exits"], saved["num_classes"], saved["include_final"])
    load_checkpoint(path, ensemble, {"ics": ics, "ensemble": title})
    return ensemble
