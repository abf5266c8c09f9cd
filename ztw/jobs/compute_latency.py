"""The job that computes a cell's times from measured times of single exits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ztw.evaluation.curves import SplitPredictions
from ztw.evaluation.methods import rules_at_budgets
from ztw.evaluation.names import BACKBONE
from ztw.evaluation.prediction_files import ExitTimes
from ztw.exits.rules import ExitRule
from ztw.exits.sweep import simulate_exits
from ztw.files import write_json
from ztw.jobs.given import GivenCell
from ztw.jobs.job import Job
from ztw.models.checkpoints import versions
from ztw.study.layout import Cell
from ztw.study.logits_settings import LogitsSet
from ztw.study.settings import EvaluationSettings, MethodSettings


@dataclass(frozen=True)
class ComputeLatencySettings:
    """The methods, their sets of logits and their budgets."""

    logits: dict[str, LogitsSet]
    methods: dict[str, MethodSettings]
    evaluation: EvaluationSettings


def compute_latency(job: Job, cell: Cell, settings: ComputeLatencySettings) -> None:
    """Write the times of every method at every budget as rows, in JSON.

    A sample takes the time of the exit that it leaves at. Thresholds come from the validation split, samples from the
    test split. An ensemble's own time is not included.
    """
    given = GivenCell(job.layout, cell, settings.logits, settings.methods)
    rows: list[dict[str, Any]] = []
    for name, method in settings.methods.items():
        job.report(name)
        validation, test = (given.predictions(method, split) for split in ("validation", "test"))
        rules: dict[Any, ExitRule | None] = {None: None}
        if not method.static:
            rules = dict(rules_at_budgets(validation, given.costs(method), method, settings.evaluation))
        for times in given.times(method):
            of_exits, alone = (
                torch.tensor(ms, dtype=torch.float64) for ms in (times.exits, [times.backbone])
            )
            rows.append(_row(BACKBONE, name, None, times, alone))
            rows += [
                _row(name, name, budget, times, of_exits[_exits(test, rule)])
                for budget, rule in rules.items()
            ]
    content = {"rows": rows, "left_out": [], "versions": versions()}
    write_json(job.layout.latency(cell), {**dataclasses.asdict(cell), **content})


def _exits(test: SplitPredictions, rule: ExitRule | None) -> Tensor:
    """Return the exit (N,) that each test sample leaves at; without a rule the only one."""
    return torch.zeros_like(test.labels) if rule is None else simulate_exits(test.logits, rule)[0]


def _row(method: str, beside: str, budget: Any, times: ExitTimes, ms: Tensor) -> dict[str, Any]:
    """Return a row as `measure_latency` writes it; ms: (N,) times of single samples."""
    place = min(len(ms), 1 + round(0.95 * (len(ms) - 1)))
    return {
        "method": method,
        "beside": beside,
        "budget": budget,
        "runtime": times.runtime,
        "batch_size": 1,
        "differs": 0.0,
        "median_ms": float(ms.median()),
        "p95_ms": float(ms.kthvalue(place).values),
        "images_per_s": 1e3 / float(ms.mean()),
        "device": times.device,
        "precision": times.precision,
        "threads": times.threads,
    }
