"""Fit a cell's ensembles on its logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ztw.exits.ensembles import Ensemble, fit_ensemble
from ztw.exits.logits import read_predictions, read_together
from ztw.jobs.job import Job
from ztw.models.checkpoints import save_checkpoint, versions
from ztw.study.layout import Cell, Layout
from ztw.study.settings import EnsembleSettings


@dataclass(frozen=True)
class FitEnsemblesSettings:
    """The ensembles of a cell.

    Args:
        ensembles: IC set or cascade -> name of an ensemble -> its settings.
        cascades: cascade -> its networks.
        from_logits: whether these networks are sets of logits from files.
    """

    ensembles: dict[str, dict[str, EnsembleSettings]]
    cascades: dict[str, list[str]] = field(default_factory=dict)
    from_logits: bool = False


def fit_ensembles(job: Job, cell: Cell, settings: FitEnsemblesSettings) -> None:
    """Fit a cell's ensembles on its logits."""
    todo = [(ics, name) for ics, named in settings.ensembles.items() for name in named]
    for done, (ics, name) in enumerate(todo, 1):
        job.report(f"{ics} {name} ({done}/{len(todo)})")
        fit = settings.ensembles[ics][name]
        logits, labels = _drawn(*_read(job.layout, cell, ics, settings, fit.fit_on), fit.samples)
        ensemble = fit_ensemble(logits, labels, fit.kind, fit.include_final)
        metadata = {"ics": ics, "ensemble": name, **_metadata(ensemble, fit, logits, labels)}
        save_checkpoint(job.layout.ensemble(cell, ics, name), ensemble, metadata)


def _read(
    layout: Layout, cell: Cell, source: str, settings: FitEnsemblesSettings, split: str
) -> tuple[Tensor, Tensor]:
    """Read the logits (K, N, C) of an IC set or a cascade, and the labels (N,)."""
    if source not in settings.cascades:
        return read_predictions(layout.predictions(cell, source, split))
    networks = settings.cascades[source]
    if settings.from_logits:
        return read_together([layout.predictions(cell, name, split) for name in networks])
    return read_together([layout.backbone_predictions(cell.with_arch(name), split) for name in networks])


def _drawn(logits: Tensor, labels: Tensor, samples: int | None) -> tuple[Tensor, Tensor]:
    """Draw `samples` samples at random, because a split may be stored class by class."""
    if samples is None or samples >= len(labels):
        return logits, labels
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:samples]
    return logits[:, drawn], labels[drawn]


def _metadata(
    ensemble: Ensemble, settings: EnsembleSettings, logits: Tensor, labels: Tensor
) -> dict[str, Any]:
    picked = ensemble(logits).gather(2, labels.expand(len(logits), -1)[..., None])
    return {
        "kind": settings.kind,
        "exits": ensemble.exits,
        "num_classes": ensemble.num_classes,
        "include_final": settings.include_final,
        "fit_on": settings.fit_on,
        "samples": len(labels),
        "settings": settings.model_dump(),
        "loss": [-value for value in picked.double().mean((1, 2)).tolist()],
        "versions": versions(),
    }
