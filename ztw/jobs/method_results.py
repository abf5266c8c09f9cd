"""Write the results of one method of a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ztw.evaluation.correct import write_correct
from ztw.evaluation.curves import Costs, SplitPredictions, label
from ztw.evaluation.methods import Rules, evaluate_method
from ztw.evaluation.metric_rows import Metric, backbone_metrics, metric_records, metric_rows
from ztw.files import sealed, write_json
from ztw.jobs.job import Job
from ztw.models.checkpoints import versions
from ztw.models.network import EarlyExitNetwork
from ztw.study.layout import Cell
from ztw.study.settings import EvaluationSettings, MethodSettings


@dataclass(frozen=True)
class Evaluated:
    """A method with all that its results are computed from.

    Args:
        splits: split -> predictions.
        costs: counter -> costs.
        unit: of the costs, in words.
        backbone_accuracy: on the test split, None = unknown.
        computed: hardware and precision of each part of its predictions.
        network: the method's network; None if its logits come from a file.
        training: what its training cost.
    """

    name: str
    method: MethodSettings
    splits: Mapping[str, SplitPredictions]
    costs: Mapping[str, Costs]
    unit: str
    backbone_accuracy: float | None
    computed: Sequence[dict[str, Any]] = ()
    network: EarlyExitNetwork | None = None
    training: Sequence[Metric] = ()


def write_results(job: Job, cell: Cell, one: Evaluated, evaluation: EvaluationSettings) -> Rules | None:
    """Write a method's curves, metrics and correct samples; NaN becomes null.

    Returns:
        The rules of the protocol `held-out`, None if the study does not have it.
    """
    layout, name, method = job.layout, one.name, one.method
    found = evaluate_method(one.splits.get("validation"), one.splits["test"], one.costs, method, evaluation)
    alone = backbone_metrics(one.costs["ztw"].base, one.backbone_accuracy)
    metrics = pd.concat([found.metrics, alone, *([metric_rows(one.training)] if one.training else [])])
    with sealed(layout.curves(cell, name)) as scratch:
        label(found.curves, cell, name).to_parquet(scratch, index=False)
    write_correct(layout.correct(cell, name), found.correct)
    content = {
        "dataset": cell.dataset,
        "arch": cell.arch,
        "seed": cell.seed,
        "method": name,
        "settings": method.model_dump(),
        "cost_unit": one.unit,
        "metrics": metric_records(metrics),
        "computed": one.computed,
        "versions": versions(),
    }
    write_json(layout.metrics(cell, name), content)
    return found.rules.get("held-out")
