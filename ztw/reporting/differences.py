"""Read the table of differences between methods."""

from __future__ import annotations

from pathlib import Path

from ztw.reporting.readable import read_rows

COLUMNS = (
    *("dataset", "arch", "protocol", "budget", "first", "second"),
    *("difference", "low", "high", "within_noise", "seeds"),
)


def read_noise(path: Path | str) -> set[tuple[str, ...]]:
    """Return the pairs of methods whose difference lies within noise, from the table of `compare_methods`.

    A pair is (data set, architecture, protocol, budget, method, method), in both orders.
    """
    pairs: set[tuple[str, ...]] = set()
    for row in read_rows(path):
        if row["within_noise"] == "True":
            *where, first, second = (row[name] for name in COLUMNS[:6])
            pairs |= {(*where, first, second), (*where, second, first)}
    return pairs
