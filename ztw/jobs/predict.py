"""Compute the logits of a cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ztw.data.dataset import Data
from ztw.data.splits import cell_splits
from ztw.errors import ZtwError
from ztw.evaluation import predictions
from ztw.jobs.cell import CellNetworks, compute_on, share_backbone
from ztw.jobs.job import Job
from ztw.jobs.split_file import write_split
from ztw.progress import Note, Report
from ztw.study.layout import Cell
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.study.training_settings import BackboneBuild, IcSet


@dataclass(frozen=True)
class PredictSettings:
    """Settings that the logits depend on; samples: number of training images, None = all."""

    images: DataSettings
    build: BackboneBuild
    sets: dict[str, IcSet]
    batch_size: int
    samples: int | None
    splits: tuple[str, ...]
    hardware: HardwareSettings


def predict(job: Job, cell: Cell, settings: PredictSettings) -> None:
    """Write the logits of every IC set on every split, and a JSON with the hardware beside each file.

    Training images are augmented, because the released recipe fits ensembles on augmented images.
    """
    networks = CellNetworks(job.layout, cell, settings.build, settings.sets)
    compute = compute_on(settings.hardware)
    parts = cell_splits(networks.record, settings.images, cell.seed, job.report)
    generator = torch.Generator().manual_seed(cell.seed)
    parts["train"] = drawn(parts["train"], settings.samples, generator)
    state = generator.get_state()
    loaded = {name: networks.network(name) for name in settings.sets}
    for names in _by_backbone(settings.sets):
        together = share_backbone([loaded[name] for name in names], compute.device)
        for split in settings.splits:
            augmenter = None
            if split == "train":  # every backbone must see the same augmented images
                augmenter = torch.Generator()
                augmenter.set_state(state)
            images = parts[split].to(compute.device)
            logits, labels = predictions.predict_networks(
                together, images, settings.batch_size, compute, augmenter, job.report
            )
            for name, values in zip(names, logits, strict=True):
                check_finite(values, job.layout.ics(cell, name), split)
                if split == "test":
                    _note_silent(name, values, loaded[name].connection.additive, job.report)
                described = {"ics": name, "split": split, **compute.describe()}
                write_split(job.layout.predictions(cell, name, split), values, labels, described)


def check_finite(logits: Tensor, weights: Path, split: str) -> None:
    """Check that all logits are finite.

    Raises:
        ZtwError: with the path of the network's weights.
    """
    if not logits.isfinite().all():
        raise ZtwError(f"{weights}: the network's logits on {split} are not finite; train it again")


def _note_silent(name: str, logits: Tensor, additive: bool, report: Report) -> None:
    if silent := predictions.silent_exits(logits, additive):
        report(
            Note(
                f"IC set {name}: exit {', '.join(map(str, silent))} gives the same logits for all images: its head"
                " learned nothing; a lower lr may help"
            )
        )


def drawn(train: Data, samples: int | None, generator: torch.Generator) -> Data:
    """Draw `samples` training images at random; None = all, in their order."""
    if samples is None:
        return train
    return train.take(torch.randperm(len(train), generator=generator)[:samples])


def _by_backbone(sets: Mapping[str, IcSet]) -> Iterable[list[str]]:
    """Group the IC sets by backbone: one group for the frozen backbone, and one for each set that trains its own."""
    frozen = [name for name, ics in sets.items() if not ics.trains_backbone]
    alone = [[name] for name, ics in sets.items() if ics.trains_backbone]
    return [frozen, *alone] if frozen else alone
