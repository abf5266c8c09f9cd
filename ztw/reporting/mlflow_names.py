"""What a cell's JSON files become in MLflow: names of runs and metrics, parameters. Imports no mlflow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ztw.reporting.readable import INFEASIBLE

# in the file of a cell's runs, instead of them, when the server was away: what was said of it
UNDELIVERED = "undelivered"
# names in MLflow that are not made of a row's parts
NAMES = {
    "backbone_accuracy": "backbone/accuracy",
    "backbone_macs": "backbone/macs",
    "exit_fraction": "{protocol}/exit_fraction_{exit}_at_{budget}",
    "loss_at_allowed_loss": "{protocol}/accuracy_loss_allowed_{budget}",
    "relative_cost_at_allowed_loss": "{protocol}/relative_cost_allowed_{budget}",
}


def headlines(
    facts: Mapping[str, Any], protocol: str, times: Mapping[str, float] | None = None
) -> dict[str, float]:
    """What a method is looked up for, under short names: accuracy (and time) at each feasible budget.

    protocol: whose accuracy; times: budget -> relative time, where it was measured; that of a static network, which
    has no budget, stands at all that it fits.
    """
    wanted = [row for row in facts["metrics"] if (row["metric"], row["protocol"]) == ("accuracy", protocol)]
    feasible = {row["budget"]: row["value"] for row in wanted if row["value"] is not None}
    measured = dict(times or {})
    if (alone := measured.pop(INFEASIBLE, None)) is not None:
        measured |= dict.fromkeys(feasible, alone)
    return {f"accuracy_at_{budget}": value for budget, value in feasible.items()} | {
        f"relative_time_at_{budget}": value for budget, value in measured.items()
    }


def metric_name(row: Mapping[str, Any]) -> str:
    """What a metric is called in MLflow, from a row of `ztw.reporting.results`; names are never parsed back."""
    if row["metric"] in NAMES:
        return NAMES[row["metric"]].format(**row)
    if row["protocol"]:
        return "{protocol}/{metric}_at_{budget}".format(**row)
    return "exit_{exit}/{metric}".format(**row) if row["exit"] else row["metric"]


def method_tag(facts: Mapping[str, Any]) -> dict[str, str]:
    """The method's name, where the file is of one."""
    return {"method": facts["method"]} if "method" in facts else {}


def title_of(kind: str, facts: Mapping[str, Any]) -> str:
    """The name of the run of one JSON file."""
    match kind:
        case "ics":
            return f"ics {facts['ics']}"
        case "ensemble":
            return f"ensemble {facts['ics']} {facts['ensemble']}"
        case "method":
            return facts["method"]
    return kind


def params_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """The parameters of one JSON file, as text."""
    params = {key: value for key, value in facts.items() if isinstance(value, str | int | float | bool)}
    for section in ("settings", "versions", "origin"):
        values = dict(facts.get(section, {}))
        values |= values.pop("recipe", {})
        params |= {f"{section}.{key}": value for key, value in values.items()}
    return {key: str(value)[:500] for key, value in params.items()}


def metrics_of(facts: Mapping[str, Any]) -> list[tuple[str, float, int, int]]:
    """The metrics of one JSON file: (name, value, when in ms, step)."""
    metrics: list[tuple[str, float, int, int]] = []
    for row in facts.get("history", []):
        when, epoch = int(row["finished"] * 1000), int(row["epoch"])
        metrics += [(key, float(row[key]), when, epoch) for key in ("loss", "accuracy", "lr", "seconds")]
    for split, value in facts.get("accuracy", {}).items():
        metrics.append((f"{split}_accuracy", value, 0, 0))
    for exit, value in enumerate(facts["loss"] if isinstance(facts.get("loss"), list) else [], 1):
        metrics.append(("exit_loss", value, 0, exit))
    for row in facts.get("metrics", []):
        value = math.nan if row["value"] is None else row["value"]
        metrics.append((metric_name(row), value, 0, 0))
    return metrics
