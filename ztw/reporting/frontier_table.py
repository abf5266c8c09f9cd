"""Read the points of the frontier from the results of a study, and write its table and its sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.catalogue.titles import title_of
from ztw.files import check_seal, write_sealed
from ztw.reporting.readable import INFEASIBLE, budget_name, percent
from ztw.reporting.rendering import markdown_table
from ztw.reporting.tables import write_csv
from ztw.study.kinds import EARLY_EXITS, KINDS

MACS = "MACs"
CAPTION = (
    "The best method of each kind within a budget, chosen on held-out samples, with its test accuracy in %. A budget is"
    " a share of the backbone's MACs or of its measured time. difference: early exits minus the best of the others, in"
    " points, with its 95 % interval over the test samples and, with three seeds or more, over trainings"
)
COLUMNS = [
    *("dataset", "arch", "unit", "budget", "kind", "method", "held_out", "accuracy", "cost", "n"),
    *("rival", "difference", "low", "high", "low_trainings", "high_trainings", "seeds"),
]
Row = Mapping[Any, Any]


def time_unit(batch_size: int, threads: int) -> str:
    """Return the unit of budgets that are measured times."""
    return f"time (batch size {batch_size}, {threads} thread{'s' * (threads != 1)})"


def write_frontier(table: pd.DataFrame, csv_path: Path, md_path: Path) -> None:
    """Write the csv, and a readable table and sentence for each data set, architecture and unit."""
    write_csv(table, csv_path)
    blocks = [_block(*where, rows) for where, rows in _groups(table)]
    write_sealed(md_path, "\n".join([f"**{CAPTION}**\n", *blocks]))


def read_frontier(path: Path | str) -> pd.DataFrame:
    """Read the csv of `write_frontier`."""
    check_seal(path)
    texts = dict.fromkeys(("dataset", "arch", "unit", "kind", "method", "rival"), str)
    numbers = {name: [""] for name in COLUMNS if name not in texts}
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=numbers)


def _groups(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], list[dict[Any, Any]]]]:
    for where, rows in table.groupby(["dataset", "arch", "unit"], sort=False):
        yield where, rows.to_dict("records")  # type: ignore[misc]


def _block(dataset: str, arch: str, unit: str, rows: Sequence[Row]) -> str:
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    shown = [
        [
            budget_name(budget),
            *(_entry(of_kind.get(kind)) for kind in kinds),
            _difference(of_kind.get(EARLY_EXITS)),
        ]
        for budget, of_kind in _by_budget(rows)
    ]
    table = markdown_table(f"{title_of(dataset, arch)}: {unit}", ["budget", *kinds, "difference"], shown)
    return f"{table}\n{sentence(dataset, arch, unit, rows)}\n"


def _by_budget(rows: Iterable[Row]) -> Iterator[tuple[float, dict[str, Row]]]:
    for budget, found in groupby(rows, key=lambda row: row["budget"]):
        yield float(budget), {row["kind"]: row for row in found}


def _entry(row: Row | None) -> str:
    return INFEASIBLE if row is None else f"{row['method']} {percent(row['accuracy']):.1f}"


def _difference(row: Row | None) -> str:
    if row is None or not _is_compared(row):
        return INFEASIBLE
    text = f"{_points(row['difference'])} [{_points(row['low'])}, {_points(row['high'])}]"
    if not math.isnan(row["low_trainings"]):
        text += f" [{_points(row['low_trainings'])}, {_points(row['high_trainings'])}]"
    return text


def _points(share: float) -> str:
    return f"{100 * share + 0.0:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")


def _is_compared(row: Row) -> bool:
    return isinstance(row.get("rival"), str) and row["rival"] != "" and not math.isnan(row["difference"])


def verdict(row: Row) -> int:
    """Return 1 if early exits are better than their rival, -1 if they are worse, 0 if that is not known.

    Both intervals, over test samples and (with three seeds or more) over trainings, must exclude 0.
    """
    ends = [row[name] for name in ("low", "high", "low_trainings", "high_trainings")]
    known = [end for end in ends if not math.isnan(end)]
    return int(min(known) > 0) - int(max(known) < 0)


def sentence(dataset: str, arch: str, unit: str, rows: Sequence[Row]) -> str:
    """Say at which budgets early exits are better, worse or level; `rows` in the order of the budgets."""
    compared = [row for row in rows if row["kind"] == EARLY_EXITS and _is_compared(row)]
    start = f"{dataset}, {arch}: "
    if not compared:
        return (
            f"{start}no static network, cascade or fixed exit within the budgets to compare early exits with."
        )
    parts = [_part(unit, word, list(own)) for word, own in groupby(compared, key=verdict)]
    return f"{start}{'; '.join(parts)}."


def _part(unit: str, word: int, rows: Sequence[Row]) -> str:
    """Describe consecutive budgets with the same verdict."""
    first, last = budget_name(rows[0]["budget"]), budget_name(rows[-1]["budget"])
    where = f"at {first}" if first == last else f"from {first} to {last}"
    where += f" of the backbone's {unit}"
    early = f"early exits ({_listed(row['method'] for row in rows)})"
    rivals = list(dict.fromkeys(row["rival"] for row in rows))
    if word == 0:
        return f"{where}, {early} and {_listed(rivals)} are level within noise"
    sizes = [f"{100 * abs(row['difference']):.1f}" for row in rows]
    low, high = min(sizes, key=float), max(sizes, key=float)
    points = f"{low} points" if low == high else f"{low} to {high} points"
    if word > 0:
        return f"{where}, {early} beat {_listed(rivals)} by {points}"
    return f"{where}, {_listed(rivals)} beat{'s' * (len(rivals) == 1)} {early} by {points}"


def _listed(names: Iterable[str]) -> str:
    """Join names: "a", "a and b", "a, b and c"; each once."""
    *most, last = dict.fromkeys(names)
    return f"{', '.join(most)} and {last}" if most else last
