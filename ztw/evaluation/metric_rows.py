"""Return metrics as rows: a value of a method under a protocol, at a budget or allowed loss, at an exit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

METRIC_COLUMNS = ("protocol", "budget", "exit", "metric", "value")


class Metric(NamedTuple):
    """A value of a metric, NaN where infeasible.

    budget: a budget of the study as text, or an allowed loss, or "". exit: 1 to K, or 0 for no exit.
    """

    metric: str
    value: float
    budget: str = ""
    exit: int = 0


def metric_rows(metrics: Iterable[Metric], protocol: str = "") -> pd.DataFrame:
    """Return metrics as rows of METRIC_COLUMNS; protocol: "" = of no protocol."""
    rows = pd.DataFrame(list(metrics), columns=list(Metric._fields))
    return rows.assign(protocol=protocol)[list(METRIC_COLUMNS)]


def backbone_metrics(base_macs: float, accuracy: float | None) -> pd.DataFrame:
    """Return the rows of the backbone's MACs and accuracy; accuracy: on the test split, None = unknown."""
    known = [] if accuracy is None else [Metric("backbone_accuracy", accuracy)]
    return metric_rows([Metric("backbone_macs", base_macs), *known])


def metric_records(metrics: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the rows for JSON, with null for NaN."""
    return metrics.astype(object).where(metrics.notna(), None).to_dict("records")
