"""The job that times a cell's methods on this machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ztw.data.splits import data_parts
from ztw.device import autocast, device_name
from ztw.evaluation.methods import rules_at_budgets
from ztw.evaluation.timing import BACKBONE, take_batches, time_in_turn
from ztw.files import read_json, write_json
from ztw.jobs.cell import Cell, CellFiles, Settings, compute_on, load_method, method_logits
from ztw.progress import Report
from ztw.reporting.latency_table import Row


def run_measure_latency(
    cell: Cell, settings: Settings, files: CellFiles, output: str, report: Report
) -> None:
    """Time every method at every budget, thresholds chosen on the validation split; writes rows as JSON."""
    device, precision = compute_on(settings)
    latency = settings["latency"]
    test = data_parts(read_json(files.prepared), cell, settings)["test"]
    batches = {size: take_batches(test, size, latency["images"], device) for size in latency["batch_sizes"]}
    where = {"device": device_name(device), "precision": precision, "threads": torch.get_num_threads()}
    calls: dict[tuple[str, Any], Callable[[Tensor], Any]] = {}
    for name in settings["methods"]:
        network = load_method(cell, settings, files, name)
        held_out = method_logits(network, settings, files, name, "validation")
        rules = rules_at_budgets(network, *held_out, settings["methods"][name], settings["evaluation"])
        network.to(device)
        calls.setdefault((BACKBONE, None), network.backbone)
        calls |= {(name, budget): partial(network.infer, rule=rule) for budget, rule in rules.items()}
    rows: list[Row] = []
    for size, parts in batches.items():
        report(f"{len(calls)} times, batches of {size}")
        with torch.inference_mode(), autocast(device, precision):
            found = time_in_turn(list(calls.values()), parts, device)
        rows += [
            {"method": method, "budget": budget, "batch_size": size, **times, **where}
            for (method, budget), times in zip(calls, found, strict=True)
        ]
    write_json(output, {**cell, "seed": int(cell["seed"]), "rows": rows})
