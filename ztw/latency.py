"""Measured time: what a method's exits save on this machine, beside what they save in operations."""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.costs import backbone_macs, macs
from ztw.data import Data
from ztw.device import autocast
from ztw.evaluation import at_budget, sweep
from ztw.files import read_json, write_json, write_text
from ztw.jobs import (
    Cell,
    CellFiles,
    Settings,
    compute_on,
    data_parts,
    device_name,
    load_method,
    method_logits,
)
from ztw.network import EarlyExitNetwork
from ztw.progress import Report
from ztw.rules import ExitRule
from ztw.tables import budget_name, write_csv
from ztw.thresholds import at, candidates

COLUMNS = (
    "dataset",
    "arch",
    "method",
    "budget",
    "batch_size",
    "median_ms",
    "p95_ms",
    "images_per_s",
    "relative_time",
    "accuracy",
    "relative_cost",
    "device",
    "precision",
    "threads",
)
WARM_UP = 2
REPEATS = 3
BACKBONE = "backbone alone"
Row = dict[str, Any]


def time_in_turn(
    calls: Sequence[Callable[[Tensor], Any]], batches: Sequence[Tensor], device: torch.device
) -> list[Row]:
    """Time calls on every batch, each after a warm-up: latency of a batch, and images a second.

    batches: (B, C, H, W) each, on `device`. The calls are gone through REPEATS times, so that a machine whose
    speed drifts slows none more than another, and each batch counts at its fastest, because a machine has
    other things to do now and then. Returns median_ms, p95_ms (of a batch) and images_per_s of each call.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    fastest = [[math.inf] * len(batches) for _ in calls]
    for _ in range(REPEATS):
        for call, spent in zip(calls, fastest, strict=True):
            for batch in batches[:WARM_UP]:
                call(batch)
            for place, batch in enumerate(batches):
                wait()
                started = time.perf_counter()
                call(batch)
                wait()
                spent[place] = min(spent[place], time.perf_counter() - started)
    images = sum(len(batch) for batch in batches)
    return [_summary(sorted(spent), images) for spent in fastest]


def _summary(spent: list[float], images: int) -> Row:
    slow = spent[min(len(spent) - 1, round(0.95 * (len(spent) - 1)))]
    return {
        "median_ms": 1e3 * statistics.median(spent),
        "p95_ms": 1e3 * slow,
        "images_per_s": images / sum(spent),
    }


def take_batches(data: Data, size: int, images: int, device: torch.device) -> list[Tensor]:
    """At least five batches of `size`, from the first test images over and over; no more than `images` of size 1."""
    wanted = max(5, images // size) * size
    found: list[Tensor] = []
    while sum(len(batch) for batch in found) < wanted:
        found += [batch.to(device) for batch, _ in data.batches(size) if len(batch) == size] or [
            batch.to(device) for batch, _ in data.batches(size)
        ]
        found = found[: wanted // size]
    return found


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


def rules_at_budgets(
    network: EarlyExitNetwork, logits: Tensor, labels: Tensor, method: Settings, evaluation: Settings
) -> dict[float | str, ExitRule]:
    """The rule a method runs with at each feasible budget, thresholds chosen on these logits (K, N, C)."""
    cost, budgets = macs(network), evaluation["budgets"]
    choice, name = method["thresholds"], method["rule"]
    offered = candidates(choice, logits, labels, cost, name, evaluation["points"])
    curve = sweep(logits, labels, cost, name, offered.thresholds, reported=offered.parameter)
    picked = at_budget(curve, budgets, backbone_macs(network.backbone))
    return {
        budget: at(name, offered, index)
        for budget, index in zip(budgets, picked, strict=True)
        if index is not None
    }


def latency_table(files: Iterable[str], results: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Measured times with accuracy and cost of the same seed's test split beside them.

    files: of `run_measure_latency`; results: of the methods, see `ztw.results`. relative_time: a
    batch's time as a share of the backbone's for the same batch.
    """
    metrics: dict[tuple, Mapping[str, float]] = {
        (r["dataset"], r["arch"], int(r["seed"]), r["method"]): r["metrics"] for r in results
    }
    table = []
    for file in files:
        facts = read_json(file)
        alone = {row["batch_size"]: row["images_per_s"] for row in facts["rows"] if row["method"] == BACKBONE}
        for row in facts["rows"]:
            key = (facts["dataset"], facts["arch"], facts["seed"], row["method"])
            known = metrics.get(key, {})
            shown = {
                name: known.get(f"held-out/{name}_at_{row['budget']}", float("nan"))
                for name in ("accuracy", "relative_cost")
            }
            if row["method"] == BACKBONE:
                own = next((m for k, m in metrics.items() if k[:3] == key[:3]), {})
                shown = {"accuracy": own.get("backbone/accuracy", float("nan")), "relative_cost": 1.0}
            budget = "-" if row["budget"] is None else row["budget"]
            relative = alone[row["batch_size"]] / row["images_per_s"]
            named = {"dataset": facts["dataset"], "arch": facts["arch"]}
            table.append({**named, **row, "budget": budget, "relative_time": relative, **shown})
    return table


def read_latency(path: Path | str, dataset: str, arch: str) -> list[Row]:
    """The rows of one data set and architecture, as `write_latency` wrote them."""
    numbers = ("median_ms", "p95_ms", "images_per_s", "relative_time", "accuracy", "relative_cost")
    with Path(path).open(newline="", encoding="utf-8") as stream:
        rows: list[Row] = [r for r in csv.DictReader(stream) if (r["dataset"], r["arch"]) == (dataset, arch)]
    for row in rows:
        row |= {name: float("nan") if row[name] == "-" else float(row[name]) for name in numbers}
        row["batch_size"] = int(row["batch_size"])
    return rows


def write_latency(rows: Sequence[Row], csv_path: str, md_path: str) -> None:
    """The long table, and a readable one: a block for each cell and batch size."""
    write_csv(rows, csv_path, COLUMNS)
    blocks: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        blocks.setdefault((row["dataset"], row["arch"], row["batch_size"]), []).append(row)
    lines = []
    for (dataset, arch, size), group in blocks.items():
        where = f"{group[0]['device']}, {group[0]['precision']}, {group[0]['threads']} threads"
        lines += [f"**{dataset}, {arch}: measured on {where}, batch size {size}**\n"]
        lines += ["| method | budget | accuracy | MACs | time | median (ms) | 95 % (ms) | images/s |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
        for row in group:
            budget = "" if row["budget"] == "-" else budget_name(row["budget"])
            lines.append(
                f"| {row['method']} | {budget} | {100 * row['accuracy']:.1f} % | {row['relative_cost']:.0%}"
                f" | {row['relative_time']:.0%} | {row['median_ms']:.2f} | {row['p95_ms']:.2f}"
                f" | {row['images_per_s']:.0f} |"
            )
        lines.append("")
    write_text(md_path, "\n".join(lines))
