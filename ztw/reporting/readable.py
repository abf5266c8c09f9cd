"""Round and mark the accuracy table once, for Markdown and LaTeX."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ztw.evaluation.names import BACKBONE
from ztw.files import check_seal

INFEASIBLE = "-"  # missing value, or budget of a network without exits; empty in a csv
SAME = "≈"
# Columns of the table of differences between methods
DIFFERENCES = (
    *("dataset", "arch", "protocol", "budget", "first", "second"),
    *("difference", "low", "high", "within_noise", "seeds"),
)
Mark = Literal["best", "same", ""]
# (data set, architecture, protocol, budget, method, method) of pairs whose difference is within noise
Noise = Collection[tuple[str, ...]]
# (data set, architecture) -> note under its tables
Notes = Mapping[tuple[str, str], str]


class Entry(NamedTuple):
    """An entry of the table. mark: "best" = best of its budget, "same" = within noise of the best, or ""."""

    text: str
    mark: Mark


@dataclass(frozen=True)
class Block:
    """The table of one data set, architecture and protocol; rows: method -> entries, one per budget."""

    title: str
    budgets: list[str]
    rows: dict[str, list[Entry]]
    note: str = ""


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """Read a csv table as text, "" for no value.

    Raises:
        ZtwError: if the file was altered.
    """
    check_seal(path)
    with Path(path).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def read_noise(path: Path | str) -> set[tuple[str, ...]]:
    """Return the pairs of methods whose difference lies within noise, from the table of `compare_methods`.

    A pair is (data set, architecture, protocol, budget, method, method), in both orders.
    """
    pairs: set[tuple[str, ...]] = set()
    for row in read_rows(path):
        if row["within_noise"] == "True":
            *where, first, second = (row[name] for name in DIFFERENCES[:6])
            pairs |= {(*where, first, second), (*where, second, first)}
    return pairs


def budget_name(budget: float | str) -> str:
    """Format a budget: 0.25 as "25 %", "max" as "Max"."""
    return "Max" if budget == "max" else f"{100 * float(budget):g} %"


def percent(share: float) -> float:
    """Convert a share to percent with one decimal, rounding half up; NaN stays NaN.

    Rounds to six decimals first, because the csv has six: tables from the csv and from memory are the same.
    """
    return share if math.isnan(share) else math.floor(1000 * round(share, 6) + 0.5 + 1e-9) / 10


def accuracy_text(row: Mapping[str, Any], seeds: int) -> str:
    """Format an accuracy in percent: "91.2 ± 0.3", "91.2" for one seed, "-" if infeasible.

    If fewer than `seeds` seeds are feasible, the text ends in their number: "91.2 (n=1)".
    """
    if math.isnan(row["mean"]):
        return INFEASIBLE
    spread = "" if math.isnan(row["std"]) else f" ± {percent(row['std']):.1f}"
    fewer = f" (n={row['n']})" if row["n"] < seeds else ""
    return f"{percent(row['mean']):.1f}{spread}{fewer}"


def blocks(
    rows: Iterable[Mapping[Any, Any]], noise: Noise = frozenset(), notes: Notes | None = None
) -> list[Block]:
    """Convert the long table to blocks.

    Args:
        noise: from `read_noise`.
        notes: from `ztw.reporting.devices.mixed`.
    """
    grouped: dict[tuple[str, str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        block = grouped.setdefault((row["dataset"], row["arch"], row["protocol"]), {})
        block.setdefault(row["method"], []).append(row)
    return [
        replace(_block(*where, methods, noise), note=(notes or {}).get(where[:2], ""))
        for where, methods in grouped.items()
    ]


def _block(
    dataset: str, arch: str, protocol: str, methods: Mapping[str, list[Mapping[str, Any]]], noise: Noise
) -> Block:
    alone = [row for row in methods.get(BACKBONE, ()) if row["budget"] == INFEASIBLE]
    compared = {method: rows for method, rows in methods.items() if rows != alone}
    seeds = max(row["n"] for rows in methods.values() for row in rows)
    leaders = [_leader(column) for column in zip(*compared.values(), strict=True)]
    budgets = [row["budget"] for row in next(iter(compared.values()))]
    entries: dict[str, list[Entry]] = {}
    if alone:
        entries[BACKBONE] = [_of_backbone(alone[0], budget, seeds) for budget in budgets]
    for method, rows in compared.items():
        entries[method] = [
            Entry(accuracy_text(row, seeds), _mark(row, leader, noise))
            for row, leader in zip(rows, leaders, strict=True)
        ]
    title = _title(dataset, arch, protocol, seeds) + _note(noise)
    if alone and not any(map(_fits_backbone, budgets)):
        title += f"; {BACKBONE}: {accuracy_text(alone[0], seeds)}"
    return Block(title, list(map(budget_name, budgets)), entries)


def _of_backbone(row: Mapping[str, Any], budget: str, seeds: int) -> Entry:
    """Return the backbone's accuracy at a budget. It has no mark, because the backbone is not a method."""
    return Entry(accuracy_text(row, seeds) if _fits_backbone(budget) else INFEASIBLE, "")


def _fits_backbone(budget: str) -> bool:
    """Return whether a budget allows the complete backbone."""
    return budget == "max" or float(budget) >= 1


def _title(dataset: str, arch: str, protocol: str, seeds: int) -> str:
    split = "validation" if protocol == "held-out" else "test"
    unit = "operations by the published counter" if protocol == "published" else "MACs"
    return (
        f"{dataset}, {arch}: test accuracy (%) within a share of the backbone's {unit}; thresholds chosen"
        f" on the {split} split (protocol {protocol}); {'mean ± std' if seeds > 1 else 'one seed'}, n = {seeds}"
    )


def _note(noise: Noise) -> str:
    """Return what the title says about noise; "" if methods were not compared."""
    return (
        f"; {SAME}: within noise of the best (95 % paired bootstrap over the test samples)" if noise else ""
    )


def _leader(column: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the best row of a budget, by accuracy to six decimals, the first one if equal; None if infeasible."""
    feasible = [row for row in column if not math.isnan(row["mean"])]
    return max(feasible, key=lambda row: round(row["mean"], 6), default=None)


def _mark(row: Mapping[str, Any], leader: Mapping[str, Any] | None, noise: Noise) -> Mark:
    """Return the mark of a row. All rows whose printed value is the best one are "best"."""
    if leader is None:
        return ""
    if percent(row["mean"]) == percent(leader["mean"]):
        return "best"
    where = (row["dataset"], row["arch"], row["protocol"], row["budget"])
    return "same" if (*where, row["method"], leader["method"]) in noise else ""
