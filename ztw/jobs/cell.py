"""What the jobs of a cell share: its networks, built as the study says and read from the files of other jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ztw.catalogue.architectures import CIFAR_RESNETS
from ztw.data.record import read_study_record
from ztw.device import keep_freed_memory, own_gpu, pick_device, resolve_precision
from ztw.exits.ensembles import Ensemble, build_ensemble
from ztw.exits.logits import read_predictions
from ztw.files import read_json
from ztw.models.architectures import build_backbone
from ztw.models.backbone import Backbone
from ztw.models.building import build_network
from ztw.models.checkpoints import load_checkpoint
from ztw.models.network import EarlyExitNetwork, static_network
from ztw.study.settings import Cell, HardwareSettings, MethodSettings
from ztw.study.training_settings import Anatomy, BackboneBuild, IcSet


def compute_on(hardware: HardwareSettings) -> tuple[torch.device, str]:
    """The device and the resolved precision of a study, for a job that computes with a network.

    Such a job keeps its freed memory; those on logits alone have few large arrays, and hold less without.
    Of several GPUs it takes one that no other job has.
    """
    keep_freed_memory()
    device = pick_device(own_gpu(hardware.device))
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # what names no device means this one: generator states, synchronize()
    return device, resolve_precision(hardware.precision, device)


@dataclass(frozen=True)
class CellFiles:
    """Where a cell's results are: the data set's record (one file, or one of each split), the backbone (None:
    there is none yet), IC set -> weights, (IC set, split) -> logits, (IC set, ensemble) -> weights."""

    record: str | Sequence[str]
    backbone: str | None = None
    ics: Mapping[str, str] = field(default_factory=dict)
    predictions: Mapping[tuple[str, str], str] = field(default_factory=dict)
    ensembles: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, files: Any, sets: Iterable[str], splits: Iterable[str], ensembles: Sequence[tuple[str, str]]
    ) -> CellFiles:
        """From a rule's inputs: `data`, `backbone`, and, in this order, `ics`, `predictions`, `ensembles`."""
        of_split = product(list(sets), splits)
        return cls(
            files.data,
            files.backbone,
            dict(zip(sets, files.ics, strict=True)),
            dict(zip(of_split, files.predictions, strict=True)),
            dict(zip(((ics, name) for ics, name in ensembles), files.ensembles, strict=True)),
        )


@dataclass(frozen=True)
class CellNetworks:
    """The networks of a cell.

    sets: its IC sets; build: how its backbone is built; statics: the networks without exits that stand beside it,
    by their architecture, each with a cell of its own. Everything it reads is checked to be this cell's, else
    ZtwError.
    """

    cell: Cell
    files: CellFiles
    sets: Mapping[str, IcSet]
    build: BackboneBuild = field(default_factory=BackboneBuild)
    statics: Mapping[str, CellNetworks] = field(default_factory=dict)

    def home(self, method: MethodSettings) -> CellNetworks:
        """The cell that holds a method's files: this one, or a static network's own."""
        return self.statics[method.static] if method.static else self

    @cached_property
    def record(self) -> dict[str, Any]:
        """What is known of the prepared data set."""
        return read_study_record(self.files.record)

    @property
    def identity(self) -> dict[str, Any]:
        """The facts a checkpoint must share with the job that loads it."""
        record = self.record
        return {
            "arch": self.cell.arch,
            "dataset": self.cell.dataset,
            "seed": self.cell.seed,
            "num_classes": record["num_classes"],
            "input_shape": [record["channels"], record["size"], record["size"]],
            # weights of the one place fit the other, where they answer something else
            "ic_features": self.build.ic_features if self.cell.arch in CIFAR_RESNETS else None,
        }

    def untrained_backbone(self, weights: str | None = None) -> Backbone:
        """The cell's backbone with random weights, or torchvision's."""
        size = (self.record["num_classes"], self.record["channels"], self.record["size"])
        options = {key: getattr(self.build, key) for key in BackboneBuild.model_fields}
        return build_backbone(self.cell.arch, *size, weights=weights, **options)

    def backbone(self) -> Backbone:
        """The cell's backbone with its trained weights, random ones where there is no file of them."""
        backbone = self.untrained_backbone()
        if self.files.backbone is not None:
            load_checkpoint(self.files.backbone, backbone, self.identity)
        return backbone

    def attach(self, backbone: Backbone, name: str) -> EarlyExitNetwork:
        """Untrained ICs on a backbone, as a set of the study says."""
        ics = self.sets[name]
        options = {key: getattr(ics, key) for key in Anatomy.model_fields}
        return build_network(backbone, ics.connection, progress=False, **options)

    def network(self, name: str) -> EarlyExitNetwork:
        """The trained network of one IC set, on the CPU in eval mode."""
        ics = self.sets[name]
        network = self.attach(self.backbone(), name)
        trained_as = {"ics": name, "connection": ics.connection, "placement": list(network.placement)}
        load_checkpoint(self.files.ics[name], trained_part(network, ics), {**self.identity, **trained_as})
        return network.eval()

    def of_method(self, method: MethodSettings) -> EarlyExitNetwork:
        """The trained network a method answers with, its fitted ensemble included, on the CPU in eval mode."""
        if method.static:
            return static_network(self.home(method).backbone()).eval()
        network = self.network(method.ics)
        if method.ensemble is not None:
            file = self.files.ensembles[method.ics, method.ensemble]
            network.ensemble = load_ensemble(file, method.ics, method.ensemble)
        return network

    def predictions(self, name: str, split: str) -> tuple[Tensor, Tensor]:
        """(logits (K, N, C), labels (N,)) of an IC set's single exits on a split, of "" of the backbone alone."""
        return read_predictions(self.files.predictions[name, split])

    @property
    def splits(self) -> set[str]:
        """The splits whose predictions are known."""
        return {split for _, split in self.files.predictions}

    def answers(self, network: EarlyExitNetwork, method: MethodSettings, split: str) -> tuple[Tensor, Tensor]:
        """(logits (K, N, C), labels (N,)) a method decides and answers with: ensembled if it has an ensemble."""
        logits, labels = self.home(method).predictions(method.ics, split)
        return (network.ensemble(logits) if network.ensemble else logits), labels


def static_networks(
    cell: Cell, files: Any, builds: Mapping[str, BackboneBuild], splits: Sequence[str] = ()
) -> dict[str, CellNetworks]:
    """The static networks beside a cell, by their architecture.

    files: a rule's inputs, `data` and, in the order of `builds` and `splits`, `statics` and `static_predictions`.
    """
    of_split = iter(files.static_predictions if splits else ())
    return {
        arch: CellNetworks(
            Cell(cell.dataset, arch, cell.seed),
            CellFiles(files.data, backbone, predictions={("", split): next(of_split) for split in splits}),
            {},
            build,
        )
        for (arch, build), backbone in zip(builds.items(), files.statics, strict=True)
    }


def trained_part(network: EarlyExitNetwork, ics: IcSet) -> nn.Module:
    """What the checkpoint of an IC set holds: the ICs, or the whole network where the backbone was trained too."""
    return network if ics.trains_backbone else network.heads


def share_backbone(networks: list[EarlyExitNetwork], device: torch.device) -> list[EarlyExitNetwork]:
    """Give all networks the first one's backbone object, on `device`."""
    for network in networks:
        network.backbone = networks[0].backbone
        network.to(device)
    return networks


def load_ensemble(path: Path | str, ics: str, title: str) -> Ensemble:
    """A fitted ensemble; raises ZtwError when its files are broken or it is another IC set's."""
    facts = read_json(Path(path).with_suffix(".json"))
    ensemble = build_ensemble(facts["kind"], facts["exits"], facts["num_classes"], facts["include_final"])
    load_checkpoint(path, ensemble, {"ics": ics, "ensemble": title})
    return ensemble
