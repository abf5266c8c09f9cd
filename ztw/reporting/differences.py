"""The table of differences between methods, with what noise allows to say of each."""

from __future__ import annotations

from pathlib import Path

from ztw.reporting.readable import read_rows

COLUMNS = (
    *("dataset", "arch", "protocol", "budget", "first", "second"),
    *("difference", "low", "high", "within_noise", "seeds"),
)


def read_noise(path: Path | str) -> set[tuple[str, ...]]:
    """The pairs whose difference lies within noise, as the job `compare_methods` wrote them.

    (data set, architecture, protocol, budget, method, method), either way round.
    """
    pairs: set[tuple[str, ...]] = set()
    for row in read_rows(path):
        if row["within_noise"] == "True":
            *where, first, second = (row[name] for name in COLUMNS[:6])
            pairs |= {(*where, first, second), (*where, second, first)}
    return pairs
