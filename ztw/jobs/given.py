"""A cell whose logits come from files: predictions, costs and times of its methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ztw.evaluation.curves import Costs, SplitPredictions
from ztw.evaluation.metrics import exit_accuracy
from ztw.evaluation.prediction_files import ExitTimes
from ztw.exits.ensembles import Ensemble
from ztw.exits.logits import read_predictions
from ztw.files import read_json
from ztw.jobs.cell import load_ensemble
from ztw.jobs.method_results import Evaluated
from ztw.progress import Report
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.logits_settings import LogitsSet
from ztw.study.settings import MethodSettings


@dataclass(frozen=True)
class GivenCell:
    """The logits of a cell, as the job `import_predictions` left them."""

    layout: Layout
    cell: Cell
    sets: Mapping[str, LogitsSet]

    def methods(self, methods: Mapping[str, MethodSettings], report: Report) -> Iterator[Evaluated]:
        """Yield every method with its predictions on the validation and the test split, and its costs."""
        accuracy = self.backbone_accuracy()
        for done, (name, method) in enumerate(methods.items(), 1):
            report(f"{name} ({done}/{len(methods)})")
            splits = {split: self.predictions(method, split) for split in ("validation", "test")}
            yield Evaluated(name, method, splits, {"ztw": self.costs(method)}, "MACs (given)", accuracy)

    def predictions(self, method: MethodSettings, split: str) -> SplitPredictions:
        """Read a method's predictions, ensembled if it has an ensemble."""
        file = self.layout.predictions(self.cell, _set_of(method), split)
        logits, labels = read_predictions(file)
        ensemble = self._ensemble(method)
        return SplitPredictions(logits if ensemble is None else ensemble(logits), labels)

    def costs(self, method: MethodSettings) -> Costs:
        """Return the costs in the file, and of the ensemble, in MACs."""
        saved = self._described(method)
        cost, ensemble = torch.tensor(saved["cost"], dtype=torch.float64), self._ensemble(method)
        if ensemble is not None:
            added = [ensemble.macs(exit) for exit in range(len(cost))]
            cost += torch.tensor(added, dtype=torch.float64).cumsum(0)
        return Costs(cost, saved["base_cost"])

    def times(self, method: MethodSettings) -> list[ExitTimes]:
        """Return the measured times in the file."""
        return [ExitTimes(**one) for one in self._described(method)["times"]]

    def backbone_accuracy(self) -> float | None:
        """Return the backbone's test accuracy: the last exit of a set on the frozen backbone; None without one."""
        for name, of_set in self.sets.items():
            found = read_predictions(self.layout.predictions(self.cell, name, "test"))
            if not of_set.trains_backbone and len(found[0]) > 1:
                return float(exit_accuracy(*found)[-1])
        return None

    def _described(self, method: MethodSettings) -> dict[str, Any]:
        described: dict[str, Any] = read_json(
            metadata(self.layout.predictions(self.cell, _set_of(method), "test"))
        )
        return described

    def _ensemble(self, method: MethodSettings) -> Ensemble | None:
        if method.ensemble is None:
            return None
        file = self.layout.ensemble(self.cell, method.ics, method.ensemble)
        return load_ensemble(file, method.ics, method.ensemble)


def _set_of(method: MethodSettings) -> str:
    return method.static or method.ics
