"""The tables beside the main one: per exit, per allowed loss, and published figures beside ours."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.tables import INFEASIBLE, Result, Row, mean_std, write_csv

PER_EXIT = ("dataset", "arch", "method", "exit", "metric", "mean", "std", "n")
ALLOWED_LOSS = (
    "dataset",
    "arch",
    "method",
    "protocol",
    "allowed_loss",
    "accuracy_loss",
    "std",
    "largest",
    "relative_cost",
    "n",
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


def _by_name(results: Iterable[Result]) -> dict[tuple[str, str, str, str], list[float]]:
    """(data set, architecture, method, metric) -> its values over the seeds."""
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for result in results:
        for name, value in result["metrics"].items():
            key = (result["dataset"], result["arch"], result["method"], name)
            values.setdefault(key, []).append(value)
    return values


def per_exit_table(results: Iterable[Result]) -> list[Row]:
    """Every metric that each exit has, if all samples left there: mean and std over the n seeds."""
    rows = []
    for (dataset, arch, method, name), values in _by_name(results).items():
        if (match := re.fullmatch(r"exit_(\d+)/(\w+)", name)) is None:
            continue
        known = [value for value in values if not math.isnan(value)]
        mean, std = mean_std(known)
        named: Row = {"dataset": dataset, "arch": arch, "method": method, "exit": int(match[1])}
        rows.append({**named, "metric": match[2], "mean": mean, "std": std, "n": len(known)})
    return rows


def allowed_loss_table(results: Iterable[Result]) -> list[Row]:
    """For methods whose thresholds follow an allowed loss of accuracy: what they lost on the test split.

    accuracy_loss, std: of the last exit's accuracy less the method's, over n seeds; largest: of any seed.
    """
    values = _by_name(results)
    rows = []
    for (dataset, arch, method, name), losses in values.items():
        if (match := re.fullmatch(r"([\w-]+)/accuracy_loss_allowed_(.+)", name)) is None:
            continue
        costs = values[dataset, arch, method, f"{match[1]}/relative_cost_allowed_{match[2]}"]
        mean, std = mean_std(losses)
        named: Row = {"dataset": dataset, "arch": arch, "method": method, "protocol": match[1]}
        found = {"allowed_loss": float(match[2]), "accuracy_loss": mean, "std": std, "largest": max(losses)}
        rows.append({**named, **found, "relative_cost": mean_std(costs)[0], "n": len(losses)})
    return rows


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


def write_more_tables(
    results: Sequence[Result],
    rows: Sequence[Row],
    published: Path | str,
    protocols: Sequence[str],
    per_exit: str,
    allowed_loss: str,
    comparison: str,
) -> None:
    """Write the three tables; rows: the accuracy table's."""
    compared = comparison_table(rows, read_published(published), protocols)
    write_csv(compared, comparison, COMPARISON)
    write_csv(per_exit_table(results), per_exit, PER_EXIT)
    write_csv(allowed_loss_table(results), allowed_loss, ALLOWED_LOSS)
