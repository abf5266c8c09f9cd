"""The tables beside the main one: per exit, per allowed loss, and published figures beside ours."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.reporting.tables import (
    INFEASIBLE,
    Row,
)

PUBLISHED = ("source", "table", "dataset", "arch", "method", "budget", "value")
COMPARISON = (
    "source",
    "table",
    "dataset",
    "arch",
    "method",
    "budget",
    "published",
    "ours",
    "std",
    "n",
    "difference",
    "protocol",
)


def read_published(path: Path | str) -> list[Row]:
    """Published accuracies, `value` in percent; raises ZtwError naming the line that is wrong."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != PUBLISHED:
                raise ZtwError(f"{path}: columns {reader.fieldnames}, must be {', '.join(PUBLISHED)}")
            rows: list[Row] = list(reader)
    except OSError as error:
        raise ZtwError(f"{path}: cannot be read ({error.strerror})") from error
    for line, row in enumerate(rows, 2):
        try:
            value, budget = float(row["value"]), row["budget"]
            valid = 0 <= value <= 100 and (budget == "max" or float(budget) > 0)
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise ZtwError(
                f"{path}: line {line}: value {row['value']!r} at budget {row['budget']!r}; the value is a"
                " percentage, the budget a share of the backbone's cost or max"
            )
        row["value"] = value
        row["budget"] = budget if budget == "max" else f"{float(budget):g}"
    return rows


def comparison_table(rows: Sequence[Row], published: Sequence[Row], protocols: Sequence[str]) -> list[Row]:
    """Our accuracies (%) with the published ones beside them, "-" where there is none.

    rows: of `ztw.tables.accuracy_table`. Ours are of the protocol nearest to the papers':
    `published`, else `paper`, else the study's first.
    """
    protocol = next((name for name in ("published", "paper") if name in protocols), protocols[0])
    ours = {
        (row["dataset"], row["arch"], row["method"], _budget(row["budget"])): row
        for row in rows
        if row["protocol"] == protocol
    }
    beside: dict[tuple[str, ...], list[Row]] = {}
    for row in published:
        beside.setdefault((row["dataset"], row["arch"], row["method"], row["budget"]), []).append(row)
    table = []
    for key, row in ours.items():
        for other in beside.get(key, [{"source": INFEASIBLE, "table": INFEASIBLE, "value": math.nan}]):
            own, spread = 100 * row["mean"], 100 * row["std"]
            values = {"published": other["value"], "ours": own, "std": spread, "n": row["n"]}
            named = dict(zip(("dataset", "arch", "method", "budget"), key, strict=True))
            source = {"source": other["source"], "table": other["table"]}
            table.append(
                {**source, **named, **values, "difference": own - other["value"], "protocol": protocol}
            )
    return table


def _budget(budget: Any) -> str:
    return budget if budget == "max" else f"{float(budget):g}"
