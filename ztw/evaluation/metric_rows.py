"""A metric is a row: a method's value under a protocol, at a budget or an allowed loss, of an exit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

METRIC_COLUMNS = ("protocol", "budget", "exit", "metric", "value")


class Metric(NamedTuple):
    """A value; budget: as the study writes it, or the allowed loss, "" for none; exit: 1 to K, 0 for none."""

    metric: str
    value: float
    budget: str = ""
    exit: int = 0


def metric_rows(metrics: Iterable[Metric], protocol: str = "") -> pd.DataFrame:
    """The metrics under a protocol, "" for none, as rows of METRIC_COLUMNS."""
    rows = pd.DataFrame(list(metrics), columns=list(Metric._fields))
    return rows.assign(protocol=protocol)[list(METRIC_COLUMNS)]


def backbone_metrics(base_macs: float, accuracy: float | None) -> pd.DataFrame:
    """The backbone's own rows of a method's metrics; accuracy: on the test split, None where unknown."""
    known = [] if accuracy is None else [Metric("backbone_accuracy", accuracy)]
    return metric_rows([Metric("backbone_macs", base_macs), *known])


def metric_records(metrics: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows as JSON has them, which has no word for not-a-number but null."""
    return metrics.astype(object).where(metrics.notna(), None).to_dict("records")
