"""Write the gallery of one data set and architecture: images that leave first, in the middle and last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.data.record import read_study_record
from ztw.data.splits import cell_splits
from ztw.errors import ZtwError
from ztw.evaluation.curves import Costs, SplitPredictions
from ztw.evaluation.methods import rules_at_budgets
from ztw.exits.logits import read_predictions
from ztw.files import read_json, write_json
from ztw.jobs.cell import load_ensemble
from ztw.jobs.job import Job
from ztw.reporting.answer import middle_budget
from ztw.reporting.gallery import draw_gallery as drawn
from ztw.reporting.gallery import make_gallery
from ztw.reporting.style import save
from ztw.study.layout import Cell, Layout
from ztw.study.settings import DataSettings, EvaluationSettings, MethodSettings


@dataclass(frozen=True)
class DrawGallerySettings:
    """Settings of the gallery of one data set and architecture.

    Args:
        seed: the study's first.
        methods: methods with early exits.
    """

    dataset: str
    arch: str
    seed: int
    images: DataSettings
    methods: dict[str, MethodSettings]
    evaluation: EvaluationSettings


@dataclass(frozen=True)
class Shown:
    """The method of a gallery, a budget of the study, and the method's predictions, ensembled, by split."""

    name: str
    method: MethodSettings
    budget: str
    splits: Mapping[str, SplitPredictions]


def draw_gallery(job: Job, title: str, settings: DrawGallerySettings) -> None:
    """Write the gallery and its figure, for the most accurate method with early exits.

    Args:
        title: the first part of the file names.
    """
    layout, cell = job.layout, Cell(settings.dataset, settings.arch, settings.seed)
    record = read_study_record([layout.record(cell.dataset, "test")])
    name, budget = best_method(layout, cell, settings.methods, settings.evaluation)
    method = settings.methods[name]
    splits = {
        split: SplitPredictions(*read_predictions(layout.predictions(cell, method.ics, split)))
        for split in settings.images.evaluated
    }
    if method.ensemble is not None:
        file = layout.ensemble(cell, method.ics, method.ensemble)
        ensemble = load_ensemble(file, method.ics, method.ensemble)
        splits = {split: SplitPredictions(ensemble(of.logits), of.labels) for split, of in splits.items()}
    shown = Shown(name, method, budget, splits)
    gallery = gallery_of(layout, cell, shown, record, settings.images, settings.evaluation)
    write_json(layout.gallery(title), gallery)
    save(drawn(gallery), layout.figure(title, "gallery"))


def best_method(
    layout: Layout, cell: Cell, methods: Iterable[str], evaluation: EvaluationSettings
) -> tuple[str, str]:
    """Return the method of a cell with the highest accuracy, the first one on a tie, and the budget.

    The budget is the one nearest to half of the backbone's cost at which a method has a result.

    Raises:
        ZtwError: if no method has a result at any budget.
    """
    found: dict[str, dict[str, float]] = {}
    for name in methods:
        for row in read_json(layout.metrics(cell, name))["metrics"]:
            here = (row["metric"], row["protocol"]) == ("accuracy", evaluation.protocols[0])
            if here and row["value"] is not None:
                found.setdefault(row["budget"], {})[name] = row["value"]
    if not found:
        raise ZtwError(
            f"{layout.cell(cell)}: no method with early exits has a result, so there is no gallery"
        )
    budget = middle_budget(found)
    return max(found[budget], key=lambda name: found[budget][name]), budget


def gallery_of(
    layout: Layout,
    cell: Cell,
    shown: Shown,
    record: dict[str, Any],
    images: DataSettings,
    evaluation: EvaluationSettings,
) -> dict[str, Any]:
    """Return the gallery of one method. Its threshold is chosen on the validation split, if there is one.

    Args:
        record: of the test images.
        images: the settings that split them.

    Raises:
        ZtwError: if the images are not those of the predictions.
    """
    data, test = cell_splits(record, images, cell.seed)["test"], shown.splits["test"]
    if not torch.equal(data.labels.cpu(), test.labels):
        raise ZtwError(f"{cell}: the test images of {cell.dataset} have other labels than the predictions")
    costs = Costs(_relative_costs(layout.metrics(cell, shown.name)), 1.0)
    rules = rules_at_budgets(shown.splits.get("validation", test), costs, shown.method, evaluation)
    rule = {str(budget): rule for budget, rule in rules.items()}[shown.budget]
    mean, std = (torch.tensor(of)[:, None, None] for of in (data.mean, data.std))

    def images_at(samples: Tensor) -> Tensor:
        ((inputs, _),) = data.take(samples).batches(len(samples))
        return ((inputs * std + mean) * 255).round().clamp(0, 255).byte()

    about = {"dataset": cell.dataset, "arch": cell.arch, "seed": cell.seed}
    about |= {"method": shown.name, "budget": shown.budget}
    return make_gallery(test.logits, test.labels, rule, images_at, record["class_names"], about)


def _relative_costs(metrics: Path) -> Tensor:
    """Return the cost of a method's exits (K,), as shares of the backbone's."""
    rows = [row for row in read_json(metrics)["metrics"] if row["metric"] == "relative_cost" and row["exit"]]
    return torch.tensor(
        [row["value"] for row in sorted(rows, key=lambda row: row["exit"])], dtype=torch.float64
    )
