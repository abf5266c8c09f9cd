"""The job that fits a cell's ensembles on its logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ztw.exits.ensembles import fit_ensemble
from ztw.exits.logits import read_predictions
from ztw.jobs.cell import (
    Settings,
)
from ztw.models.checkpoints import save_checkpoint, versions
from ztw.progress import Report


def run_fit_ensembles(
    settings: Settings,
    predictions: Mapping[tuple[str, str], str],
    outputs: Mapping[tuple[str, str], str],
    report: Report,
) -> None:
    """Fit a cell's ensembles; predictions: (IC set, split) -> logits; outputs: (IC set, ensemble) -> file."""
    for done, ((name, title), output) in enumerate(outputs.items(), 1):
        report(f"{name} {title} ({done}/{len(outputs)})")
        own = settings["ensembles"]["sets"][title]
        logits, labels = read_predictions(predictions[name, own["fit_on"]])
        if own["samples"] is not None and own["samples"] < len(labels):
            # drawn, because a split may be stored class by class
            drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
            drawn = drawn[: own["samples"]]
            logits, labels = logits[:, drawn], labels[drawn]
        ensemble = fit_ensemble(logits, labels, own["kind"], own["include_final"])
        picked = ensemble(logits).gather(2, labels.expand(len(logits), -1)[..., None])
        facts = {
            "ics": name,
            "ensemble": title,
            "kind": own["kind"],
            "exits": ensemble.exits,
            "classes": ensemble.classes,
            "include_final": own["include_final"],
            "fit_on": own["fit_on"],
            "samples": len(labels),
            "loss": [-value for value in picked.double().mean((1, 2)).tolist()],
            "versions": versions(),
        }
        save_checkpoint(output, ensemble, facts)
