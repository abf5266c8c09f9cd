"""The job that copies a cell's logits from the user's files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ztw.errors import ZtwError
from ztw.evaluation.prediction_files import Predictions, read_prediction_file
from ztw.files import sha256
from ztw.jobs.job import Job
from ztw.jobs.split_file import write_split
from ztw.progress import Note
from ztw.study.layout import Cell
from ztw.study.logits_settings import LogitsSet

NO_NETWORKS = "a study from logits has no networks: nothing to export, no models in MLflow"


@dataclass(frozen=True)
class ImportPredictionsSettings:
    """The files of a cell.

    Args:
        sets: every set of logits.
        statics: sets of networks without early exits.
        splits: set -> the splits that the study needs.
        times: the study reports times.
        timed: it takes them from this cell, so its files must have some.
        stamps: set -> stamp of its file.
    """

    sets: dict[str, LogitsSet]
    statics: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    times: bool
    timed: bool
    stamps: dict[str, str | None]


def import_predictions(job: Job, cell: Cell, settings: ImportPredictionsSettings) -> None:
    """Copy the logits of every set into the study, after checking that the sets of a cell fit together.

    Raises:
        ZtwError: if a file cannot be used, with its path.
    """
    first: tuple[Path, Predictions] | None = None
    for done, (name, of_set) in enumerate(settings.sets.items(), 1):
        path = of_set.file(cell)
        job.report(f"{name} ({done}/{len(settings.sets)})")
        found = read_prediction_file(path)
        _check_exits(path, name, found, name in settings.statics)
        if settings.timed and not found.times:
            raise ZtwError(
                f"{path}: has no times; write_predictions(times=...) adds them, or leave logits.times out"
            )
        first = first or (path, found)
        _check_same_samples(*first, path, found)
        described = _described(name, of_set, path, found)
        for split in settings.splits[name]:
            pair = found.of(split)
            if pair is None:
                raise ZtwError(
                    f"{path}: has no train_logits, which fit_on: train needs; use fit_on: validation"
                )
            write_split(job.layout.predictions(cell, name, split), *pair, {**described, "split": split})
    job.report(Note(NO_NETWORKS if settings.times else f"{NO_NETWORKS}, no measured times"))


def _check_exits(path: Path, name: str, found: Predictions, static: bool) -> None:
    exits = len(found.cost)
    if static and exits > 1:
        raise ZtwError(f"{path}: {exits} exits, but methods name {name} as static, which has one")
    if not static and exits == 1:
        raise ZtwError(
            f"{path}: one exit, so nothing can leave early; name {name} in a method as static: {name}"
        )


def _check_same_samples(one: Path, expected: Predictions, path: Path, found: Predictions) -> None:
    """Check that two sets of a cell have the same labels, classes and backbone."""
    for split in ("validation", "test"):
        pair, other = found.of(split), expected.of(split)
        assert pair is not None
        assert other is not None
        if pair[0].shape[-1] != other[0].shape[-1]:
            raise ZtwError(f"{path}: {pair[0].shape[-1]} classes, {one} has {other[0].shape[-1]}")
        if not torch.equal(pair[1], other[1]):
            raise ZtwError(
                f"{path}: other {split} labels than {one}; all sets of a cell need the same samples in the same order"
            )
    if found.base_cost != expected.base_cost:
        raise ZtwError(
            f"{path}: base_cost {found.base_cost:g}, {one} has {expected.base_cost:g}; all sets of a cell need the same"
            " backbone"
        )


def _described(name: str, of_set: LogitsSet, path: Path, found: Predictions) -> dict[str, Any]:
    return {
        "ics": name,
        "settings": of_set.model_dump(),
        "origin": {"source": "logits", "file": path.name, "sha256": sha256(path), "note": found.origin},
        "cost": found.cost.tolist(),
        "base_cost": found.base_cost,
        "times": [asdict(one) for one in found.times],
    }
