"""Round and mark the accuracy table once, for Markdown and LaTeX."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ztw.catalogue.titles import title_of
from ztw.evaluation.names import BACKBONE
from ztw.files import check_seal
from ztw.study.kinds import CASCADE, EARLY_EXITS, FIXED_EXIT, STATIC

INFEASIBLE = "-"  # missing value, or budget of a network without exits; empty in a csv
SAME = "≈"
ROUNDED = (
    f"Equal numbers with and without {SAME}: the test compares two methods image by image, before rounding, so a"
    " difference below the last digit can exceed noise."
)
PLURALS = {STATIC: "static networks", CASCADE: "cascades of networks", FIXED_EXIT: "fixed exits"}
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
    """The table of one data set, architecture and protocol.

    Args:
        rows: method -> entries, one per budget.
        groups: heading -> methods, for methods that are compared with each other only; empty if there is one group.
    """

    title: str
    budgets: list[str]
    rows: dict[str, list[Entry]]
    groups: dict[str, list[str]]
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
    return noise_of(read_rows(path))


def noise_of(rows: Iterable[Mapping[Any, Any]]) -> set[tuple[str, ...]]:
    """Return the pairs of `read_noise`; rows: of the table of `compare_methods`."""
    pairs: set[tuple[str, ...]] = set()
    for row in rows:
        if str(row["within_noise"]) == "True":
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
    made = [(where, _block(*where, methods, noise)) for where, methods in grouped.items()]
    return [
        replace(block, note=" ".join(filter(None, [block.note, (notes or {}).get(where[:2], "")])))
        for where, block in made
    ]


def _block(
    dataset: str, arch: str, protocol: str, methods: Mapping[str, list[Mapping[str, Any]]], noise: Noise
) -> Block:
    alone = [row for row in methods.get(BACKBONE, ()) if row["budget"] == INFEASIBLE]
    compared = {method: rows for method, rows in methods.items() if rows != alone}
    seeds = max(row["n"] for rows in methods.values() for row in rows)
    budgets = [row["budget"] for row in next(iter(compared.values()))]
    groups = _groups(compared)
    entries: dict[str, list[Entry]] = {}
    if alone:
        entries[BACKBONE] = [_of_backbone(alone[0], budget, seeds) for budget in budgets]
    for members in groups.values():
        entries |= _entries({method: compared[method] for method in members}, noise, seeds)
    title = _title(dataset, arch, protocol, seeds) + _note(noise)
    if alone and not any(map(_fits_backbone, budgets)):
        title += f"; {BACKBONE}: {accuracy_text(alone[0], seeds)}"
    headed = groups if len(groups) > 1 else {}
    note = ROUNDED if any(_is_rounded(entries, members) for members in groups.values()) else ""
    return Block(title, list(map(budget_name, budgets)), entries, headed, note)


def _groups(compared: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """Divide methods into early exits and what one would use instead of them: heading -> methods."""
    kinds = {method: rows[0].get("kind") or EARLY_EXITS for method, rows in compared.items()}
    others = [kind for kind in PLURALS if kind in kinds.values()]
    groups = {
        EARLY_EXITS: [method for method, kind in kinds.items() if kind == EARLY_EXITS],
        ", ".join(PLURALS[kind] for kind in others): [
            method for method, kind in kinds.items() if kind in others
        ],
    }
    return {heading: members for heading, members in groups.items() if members}


def _entries(
    compared: Mapping[str, list[Mapping[str, Any]]], noise: Noise, seeds: int
) -> dict[str, list[Entry]]:
    """Return the entries of methods that are compared with each other."""
    leaders = [_leader(column) for column in zip(*compared.values(), strict=True)]
    return {
        method: [
            Entry(accuracy_text(row, seeds), _mark(row, leader, noise))
            for row, leader in zip(rows, leaders, strict=True)
        ]
        for method, rows in compared.items()
    }


def _is_rounded(entries: Mapping[str, list[Entry]], members: Iterable[str]) -> bool:
    """Return whether two methods have the same number at a budget, one with a mark and one without."""
    return any(
        len({entry.mark for entry in column if _number(entry) == number}) > 1
        for column in zip(*(entries[method] for method in members), strict=True)
        for number in {_number(entry) for entry in column} - {INFEASIBLE}
    )


def _number(entry: Entry) -> str:
    return entry.text.split(" ")[0]


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
        f"{title_of(dataset, arch)}: test accuracy (%) within a share of the backbone's {unit}; thresholds chosen"
        f" on the {split} split (protocol {protocol}); {'mean ± std' if seeds > 1 else 'one seed'}, n = {seeds}"
    )


def _note(noise: Noise) -> str:
    """Return what the title says about noise; "" if methods were not compared."""
    return (
        f"; {SAME}: within noise of the best (95 % paired bootstrap over the test samples)" if noise else ""
    )


def _leader(column: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the best row of a budget in its group, the first of equal ones to six decimals; None if infeasible."""
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
