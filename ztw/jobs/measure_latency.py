"""The job that times a cell's methods on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ztw.data.splits import cell_splits
from ztw.device import autocast, computed_on
from ztw.evaluation.methods import rules_at_budgets
from ztw.evaluation.timing import BACKBONE, take_batches, time_in_turn
from ztw.files import write_json
from ztw.jobs.cell import CellNetworks, compute_on
from ztw.models.checkpoints import versions
from ztw.progress import Report
from ztw.study.settings import (
    DataSettings,
    EvaluationSettings,
    HardwareSettings,
    LatencySettings,
    MethodSettings,
)

# (method, budget; None for the backbone alone) -> what is timed
Calls = dict[tuple[str, Any], Callable[[Tensor], Any]]


@dataclasses.dataclass(frozen=True)
class LatencyPlan:
    """What is timed (methods, at the budgets of the evaluation), how, on which images and hardware."""

    methods: Mapping[str, MethodSettings]
    evaluation: EvaluationSettings
    latency: LatencySettings
    data: DataSettings
    hardware: HardwareSettings


def measure_latency(networks: CellNetworks, plan: LatencyPlan, output: str, report: Report) -> None:
    """Time every method at every budget, thresholds chosen on the validation split; writes rows as JSON."""
    device, precision = compute_on(plan.hardware)
    test = cell_splits(networks.record, plan.data, networks.cell.seed, report)["test"]
    calls = _calls(networks, plan, device)
    where = computed_on(device, precision)
    rows: list[dict[str, Any]] = []
    for size in plan.latency.batch_sizes:
        report(f"{len(calls)} times, batches of {size}")
        batches = take_batches(test, size, plan.latency.images, device)
        with torch.inference_mode(), autocast(device, precision):
            found = time_in_turn(list(calls.values()), batches, device)
        rows += [
            {"method": method, "budget": budget, "batch_size": size, **times, **where}
            for (method, budget), times in zip(calls, found, strict=True)
        ]
    write_json(output, {**dataclasses.asdict(networks.cell), "rows": rows, "versions": versions()})


def _calls(networks: CellNetworks, plan: LatencyPlan, device: torch.device) -> Calls:
    calls: Calls = {}
    for name, method in plan.methods.items():
        network = networks.of_method(method)
        held_out = networks.answers(network, method, "validation")
        rules = rules_at_budgets(network, *held_out, method, plan.evaluation)
        network.to(device)
        calls.setdefault((BACKBONE, None), network.backbone)
        calls |= {(name, budget): partial(network.infer, rule=rule) for budget, rule in rules.items()}
    return calls
