"""The table of differences between methods, with what noise allows to say of each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

COLUMNS = (
    "dataset",
    "arch",
    "protocol",
    "budget",
    "first",
    "second",
    "difference",
    "low",
    "high",
    "within_noise",
    "seeds",
)
Row = dict[str, Any]


# (data set, architecture, protocol, budget, method, method)
Pair = tuple[str, str, str, str, str, str]


def read_noise(path: Path | str) -> set[Pair]:
    """The pairs whose difference lies within noise, either way round, as `run_compare_methods` wrote them."""
    pairs: set[Pair] = set()
    with Path(path).open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["within_noise"] == "True":
                where = (row["dataset"], row["arch"], row["protocol"], row["budget"])
                pairs |= {(*where, row["first"], row["second"]), (*where, row["second"], row["first"])}
    return pairs
