"""A cell whose logits come from files: predictions, costs and times of its methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from ztw.evaluation.curves import Costs, SplitPredictions
from ztw.evaluation.metrics import exit_accuracy
from ztw.evaluation.prediction_files import ExitTimes
from ztw.exits.ensembles import Ensemble
from ztw.exits.logits import read_predictions, read_together
from ztw.files import read_json
from ztw.jobs.cell import load_ensemble
from ztw.jobs.method_results import Evaluated
from ztw.progress import Report
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.logits_settings import LogitsSet
from ztw.study.settings import MethodSettings


@dataclass(frozen=True)
class GivenCell:
    """The logits of a cell, as the job `import_predictions` left them; rows: the study's methods."""

    layout: Layout
    cell: Cell
    sets: Mapping[str, LogitsSet]
    rows: Mapping[str, MethodSettings]

    def methods(self, report: Report) -> Iterator[Evaluated]:
        """Yield every method with its predictions on the validation and the test split, and its costs."""
        accuracy = self.backbone_accuracy()
        for done, (name, method) in enumerate(self.rows.items(), 1):
            report(f"{name} ({done}/{len(self.rows)})")
            splits = {split: self.predictions(method, split) for split in ("validation", "test")}
            yield Evaluated(name, method, splits, {"ztw": self.costs(method)}, "MACs (given)", accuracy)

    def predictions(self, method: MethodSettings, split: str) -> SplitPredictions:
        """Read a method's predictions, ensembled if it has an ensemble."""
        logits, labels = read_together(
            [self.layout.predictions(self.cell, of, split) for of in self._sets(method)]
        )
        ensemble = self._ensemble(method)
        return SplitPredictions(logits if ensemble is None else ensemble(logits), labels)

    def costs(self, method: MethodSettings) -> Costs:
        """Return the costs in the file, and of the ensemble, in MACs."""
        saved, ensemble = self._described(method), self._ensemble(method)
        if method.cascade_of:  # a sample pays for all networks up to the one where it leaves
            last = torch.tensor([one["cost"][-1] for one in saved], dtype=torch.float64)
            cost = last.cumsum(0)
        else:
            cost = torch.tensor(saved[0]["cost"], dtype=torch.float64)
        if ensemble is not None:
            added = [ensemble.macs(exit) for exit in range(len(cost))]
            cost += torch.tensor(added, dtype=torch.float64).cumsum(0)
        return Costs(cost, saved[-1]["base_cost"])

    def times(self, method: MethodSettings) -> list[ExitTimes]:
        """Return the measured times in the file."""
        found = [[ExitTimes(**one) for one in saved["times"]] for saved in self._described(method)]
        return _summed(found) if method.cascade_of else found[0]

    def backbone_accuracy(self) -> float | None:
        """Return the backbone's test accuracy: the last exit of a set on the frozen backbone; None without one."""
        for name, of_set in self.sets.items():
            found = read_predictions(self.layout.predictions(self.cell, name, "test"))
            if not of_set.trains_backbone and len(found[0]) > 1:
                return float(exit_accuracy(*found)[-1])
        return None

    def _sets(self, method: MethodSettings) -> list[str]:
        """Return the sets of a method: one, or those of a cascade's networks."""
        rows = [self.rows[row] for row in method.cascade_of or ()]
        return [str(row.static) for row in rows] or [method.static or method.ics]

    def _described(self, method: MethodSettings) -> list[dict[str, Any]]:
        files = [metadata(self.layout.predictions(self.cell, of, "test")) for of in self._sets(method)]
        return [read_json(file) for file in files]

    def _ensemble(self, method: MethodSettings) -> Ensemble | None:
        if method.ensemble is None:
            return None
        source = "+".join(self._sets(method))
        return load_ensemble(
            self.layout.ensemble(self.cell, source, method.ensemble), source, method.ensemble
        )


def _summed(found: list[list[ExitTimes]]) -> list[ExitTimes]:
    """Return the times of a cascade: each exit takes the time of all networks up to its own."""
    where = [{(one.runtime, one.device, one.precision, one.threads): one for one in times} for times in found]
    # Times of another runtime or machine cannot be added
    everywhere = [key for key in where[-1] if all(key in of_network for of_network in where)]
    pairs = [[of_network[key] for of_network in where] for key in everywhere]
    return [replace(times[-1], exits=list(accumulate(one.exits[-1] for one in times))) for times in pairs]
