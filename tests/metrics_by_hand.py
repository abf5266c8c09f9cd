"""Hand-written metrics for the tests of tables, figures and tracking."""

from __future__ import annotations

import pandas as pd

from ztw.reporting.results import METRIC_COLUMNS


def metric(name: str, value: float | None, **where) -> dict:
    """Return a row like those of the job `evaluate`; where: protocol, budget, exit."""
    return {"protocol": "", "budget": "", "exit": 0, **where, "metric": name, "value": value}


def at_budget(
    budget: str, accuracy: float | None, cost: float | None, protocol: str = "held-out"
) -> list[dict]:
    """Return the two rows that the accuracy table needs for a budget."""
    where = {"protocol": protocol, "budget": budget}
    return [metric("accuracy", accuracy, **where), metric("relative_cost", cost, **where)]


def result(rows: list[dict], method: str = "sdn", seed: int = 0) -> pd.DataFrame:
    """Return the rows as metrics of data set d and architecture a."""
    named = [{"dataset": "d", "arch": "a", "seed": seed, "method": method, **row} for row in rows]
    return pd.DataFrame(named, columns=list(METRIC_COLUMNS))


def results(*parts: pd.DataFrame) -> pd.DataFrame:
    """Return several results as one table."""
    return pd.concat(parts, ignore_index=True)
