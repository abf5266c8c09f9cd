"""The job that fits a cell's ensembles on its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ztw.exits.ensembles import Ensemble, fit_ensemble
from ztw.exits.logits import read_predictions
from ztw.models.checkpoints import save_checkpoint, versions
from ztw.progress import Report
from ztw.study.settings import EnsembleSettings

# (IC set, what belongs to it: an ensemble's or a split's name) -> file
Files = Mapping[tuple[str, str], str]


def fit_ensembles(
    ensembles: Mapping[str, EnsembleSettings], predictions: Files, outputs: Files, report: Report
) -> None:
    """Fit a cell's ensembles; predictions: (IC set, split) -> logits; outputs: (IC set, ensemble) -> file."""
    for done, ((ics, title), output) in enumerate(outputs.items(), 1):
        report(f"{ics} {title} ({done}/{len(outputs)})")
        settings = ensembles[title]
        logits, labels = _drawn(*read_predictions(predictions[ics, settings.fit_on]), settings.samples)
        ensemble = fit_ensemble(logits, labels, settings.kind, settings.include_final)
        facts = _facts(ensemble, settings, logits, labels)
        save_checkpoint(output, ensemble, {"ics": ics, "ensemble": title, **facts})


def _drawn(logits: Tensor, labels: Tensor, samples: int | None) -> tuple[Tensor, Tensor]:
    """As many samples as are wanted; drawn, because a split may be stored class by class."""
    if samples is None or samples >= len(labels):
        return logits, labels
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:samples]
    return logits[:, drawn], labels[drawn]


def _facts(ensemble: Ensemble, settings: EnsembleSettings, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    picked = ensemble(logits).gather(2, labels.expand(len(logits), -1)[..., None])
    return {
        "kind": settings.kind,
        "exits": ensemble.exits,
        "num_classes": ensemble.num_classes,
        "include_final": settings.include_final,
        "fit_on": settings.fit_on,
        "samples": len(labels),
        "loss": [-value for value in picked.double().mean((1, 2)).tolist()],
        "versions": versions(),
    }
