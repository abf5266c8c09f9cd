"""The job that writes down a cell's logits, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.data.dataset import Data
from ztw.data.splits import cell_splits
from ztw.device import computed_on
from ztw.errors import ZtwError
from ztw.evaluation import predictions
from ztw.files import write_json
from ztw.jobs.cell import CellNetworks, compute_on, share_backbone
from ztw.models.checkpoints import versions
from ztw.progress import Note, Report
from ztw.study.settings import DataSettings, HardwareSettings
from ztw.study.training_settings import IcSet
from ztw.tensors import write_tensors


def predict(
    networks: CellNetworks,
    data: DataSettings,
    hardware: HardwareSettings,
    sizes: tuple[int, int | None],
    outputs: Mapping[tuple[str, str], str],
    report: Report,
) -> None:
    """Write the logits of every IC set on every split, and where they were computed into the JSON beside them.

    sizes: (images of a batch, training images wanted or None for all); outputs: (IC set, split) -> file.
    The training images are augmented, as the released recipe's ensembles are fitted.
    """
    device, precision = compute_on(hardware)
    batch_size, samples = sizes
    parts = cell_splits(networks.record, data, networks.cell.seed, report)
    generator = torch.Generator().manual_seed(networks.cell.seed)
    parts["train"] = _drawn(parts["train"], samples, generator)
    state = generator.get_state()
    loaded = {name: networks.network(name) for name in networks.sets}
    for names in _by_backbone(networks.sets):
        together = share_backbone([loaded[name] for name in names], device)
        for split in dict.fromkeys(split for _, split in outputs):
            augmenter = None
            if split == "train":  # every backbone sees the same images
                augmenter = torch.Generator()
                augmenter.set_state(state)
            images = parts[split].to(device)
            logits, labels = predictions.predict_networks(
                together, images, batch_size, precision, augmenter, report
            )
            for name, values in zip(names, logits, strict=True):
                if not values.isfinite().all():
                    file = networks.files.ics[name]
                    raise ZtwError(f"{file}: its logits on {split} are not finite; train it again")
                additive = loaded[name].connection.additive
                if split == "test" and (silent := predictions.silent_exits(values, additive)):
                    report(
                        Note(
                            f"IC set {name}: to exit {', '.join(map(str, silent))} all images are alike: the head has"
                            " died in training; a lower lr may help"
                        )
                    )
                facts = {"ics": name, "split": split, **computed_on(device, precision)}
                write_predictions(outputs[name, split], values, labels, facts)


def write_predictions(path: str, logits: Tensor, labels: Tensor, facts: Mapping[str, Any]) -> None:
    """Write logits (K, N, C) and labels (N,), and beside them in a JSON what they are and where they were computed."""
    write_tensors(path, {"logits": logits, "labels": labels})
    write_json(Path(path).with_suffix(".json"), {**facts, "versions": versions()})


def _drawn(train: Data, samples: int | None, generator: torch.Generator) -> Data:
    """As many training images as are wanted."""
    if samples is None:
        return train
    return train.take(torch.randperm(len(train), generator=generator)[:samples])


def _by_backbone(sets: Mapping[str, IcSet]) -> Iterable[list[str]]:
    """The sets on the frozen backbone together, each of the others alone."""
    frozen = [name for name, ics in sets.items() if not ics.trains_backbone]
    alone = [[name] for name, ics in sets.items() if ics.trains_backbone]
    return [frozen, *alone] if frozen else alone
