"""Convert the JSON files of a cell to names of runs, metrics and parameters in MLflow. Imports no mlflow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ztw.reporting.mlflow_view import headline
from ztw.reporting.readable import INFEASIBLE
from ztw.study.layout import Cell

# Key of the reason why MLflow has no runs of a cell, in its file of run ids. The next call logs the cell again.
UNDELIVERED = "undelivered"


def undelivered(cell: Cell, reason: str) -> dict[str, Any]:
    """Return the content of a cell's file of run ids if MLflow has no runs of the cell."""
    return {**asdict(cell), UNDELIVERED: reason}


def headlines(
    content: Mapping[str, Any], protocol: str, times: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return a method's accuracy and time at each feasible budget, under short names.

    Args:
        content: content of the method's metrics file.
        times: budget -> relative time, if measured. A static network has one time, which is used for all its feasible
            budgets.
    """
    wanted = [row for row in content["metrics"] if (row["metric"], row["protocol"]) == ("accuracy", protocol)]
    feasible = {row["budget"]: row["value"] for row in wanted if row["value"] is not None}
    measured = dict(times or {})
    if (alone := measured.pop(INFEASIBLE, None)) is not None:
        measured |= dict.fromkeys(feasible, alone)
    return {headline("accuracy", budget): value for budget, value in feasible.items()} | {
        headline("relative_time", budget): value for budget, value in measured.items()
    }


def metric_name(row: Mapping[str, Any]) -> str:
    """Return the name in MLflow of a row of metrics: [protocol/][exit_k/]metric[_at_budget]."""
    exit = f"exit_{row['exit']}" if row["exit"] else ""
    metric = f"{row['metric']}_at_{row['budget']}" if row["budget"] else row["metric"]
    return "/".join(filter(None, [row["protocol"], exit, metric]))


def title_of(kind: str, content: Mapping[str, Any]) -> str:
    """Return the name of the run for one JSON file; kind: "backbone", "ics", "ensemble" or "method"."""
    parts = [content[name] for name in ("ics", "ensemble") if name in content]
    return content["method"] if kind == "method" else " ".join([kind, *parts])


def params_of(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of one JSON file as text."""
    params = {key: value for key, value in content.items() if isinstance(value, str | int | float | bool)}
    for section in ("settings", "versions", "origin"):
        values = dict(content.get(section, {}))
        values |= values.pop("recipe", {})
        params |= {f"{section}.{key}": value for key, value in values.items()}
    return {key: str(value)[:500] for key, value in params.items()}


def metrics_of(content: Mapping[str, Any]) -> list[tuple[str, float, int, int]]:
    """Return the metrics of one JSON file: (name, value, time in ms, step)."""
    metrics: list[tuple[str, float, int, int]] = []
    for row in content.get("history", []):
        when, epoch = int(row["finished"] * 1000), int(row["epoch"])
        metrics += [(key, float(row[key]), when, epoch) for key in ("loss", "accuracy", "lr", "seconds")]
    for split, value in content.get("accuracy", {}).items():
        metrics.append((f"{split}_accuracy", value, 0, 0))
    for exit, value in enumerate(content["loss"] if isinstance(content.get("loss"), list) else [], 1):
        metrics.append(("exit_loss", value, 0, exit))
    for row in content.get("metrics", []):
        value = math.nan if row["value"] is None else row["value"]
        metrics.append((metric_name(row), value, 0, 0))
    return metrics
