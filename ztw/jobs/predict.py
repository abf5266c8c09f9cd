"""The job that writes down a cell's logits, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ztw.data.splits import data_parts
from ztw.errors import ZtwError
from ztw.evaluation.predictions import predict
from ztw.files import read_json
from ztw.jobs.cell import (
    Cell,
    Settings,
    compute_on,
    load_network,
    share_backbone,
    trains_trunk,
)
from ztw.progress import Report
from ztw.tensors import write_tensors


def run_predict(
    cell: Cell,
    settings: Settings,
    prepared_file: str,
    backbone_file: str,
    ics_files: Mapping[str, str],
    outputs: Mapping[tuple[str, str], str],
    report: Report,
) -> None:
    """Write the logits of every IC set on every split; outputs: (IC set, split) -> file."""
    prepared = read_json(prepared_file)
    device, precision = compute_on(settings)
    networks = {
        name: load_network(cell, settings, prepared, backbone_file, name, file)
        for name, file in ics_files.items()
    }
    data_of = data_parts(prepared, cell, settings)
    train = data_of["train"]
    generator = torch.Generator().manual_seed(int(cell["seed"]))
    samples = settings["samples"]
    if samples is not None:
        train = train.take(torch.randperm(len(train), generator=generator)[:samples])
    parts = {
        "train": (train, generator.get_state()),  # augmented, as the released recipe's ensembles are fitted
        "validation": (data_of["validation"], None),
        "test": (data_of["test"], None),
    }
    for names in _by_trunk(settings["ics"]["sets"], networks):
        together = share_backbone([networks[name] for name in names], device)
        for split in dict.fromkeys(split for _, split in outputs):
            data, state = parts[split]
            augmenter = None if state is None else torch.Generator()
            if augmenter is not None and state is not None:
                augmenter.set_state(state)  # every trunk sees the same images
            logits, labels = predict(
                together, data.to(device), settings["ics"]["batch_size"], precision, augmenter, report
            )
            for name, values in zip(names, logits, strict=True):
                if not values.isfinite().all():
                    raise ZtwError(f"{ics_files[name]}: its logits on {split} are not finite; train it again")
                write_tensors(outputs[name, split], {"logits": values, "labels": labels})


def _by_trunk(sets: Settings, names: Iterable[str]) -> list[list[str]]:
    """The sets on the frozen backbone together, each of the others alone."""
    frozen = [name for name in names if not trains_trunk(sets[name])]
    alone = [[name] for name in names if trains_trunk(sets[name])]
    return [frozen, *alone] if frozen else alone
