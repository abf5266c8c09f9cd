"""Make the report's tables: rounded texts in groups, with the best of each group marked. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ztw.evaluation.names import BACKBONE
from ztw.progress import clock
from ztw.reporting.answer import points
from ztw.reporting.frontier_table import MACS
from ztw.reporting.readable import INFEASIBLE, SAME, Block, Entry, blocks, budget_name, noise_of, percent
from ztw.reporting.results import Metrics
from ztw.study.kinds import EARLY_EXITS, KINDS

CALIBRATION = {
    "ece": "calibration error",
    "ece_scaled": "after temperature scaling",
    "auroc": "AUROC",
    "brier": "Brier score",
    "nll": "NLL",
}


@dataclass(frozen=True)
class Group:
    """Rows of entries, the first of which is the row's name."""

    title: str
    rows: list[list[Entry]]


@dataclass(frozen=True)
class HtmlTable:
    """A table of the report."""

    title: str
    heads: list[str]
    groups: list[Group]
    note: str = ""


def plain(texts: Iterable[str]) -> list[Entry]:
    """Return a row without marks."""
    return [Entry(text, "") for text in texts]


def accuracy_table(rows: pd.DataFrame, differences: pd.DataFrame) -> HtmlTable:
    """Return accuracy at every budget. In each group the best, and what is within noise of it, are marked.

    Args:
        rows: of the accuracy table, of one data set, architecture and protocol.
        differences: the table of differences, of the same data set and architecture.
    """
    (block,) = blocks(rows.to_dict("records"), noise_of(differences.to_dict("records")))
    groups = [Group(title, [_row(name, block) for name in names]) for title, names in block.groups.items()]
    alone = [name for name in block.rows if not any(name in names for names in block.groups.values())]
    groups.insert(0, Group("", [_row(name, block) for name in alone]))
    seeds = int(rows["n"].max())
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return HtmlTable(
        f"Test accuracy (%) within a share of the backbone's MACs, {spread}",
        ["", *block.budgets],
        [group for group in groups if group.rows],
        f"Bold: the best of its group. {SAME}: within noise of the group's best, by a 95 % paired bootstrap over the"
        f" test samples. {INFEASIBLE}: the budget is too small. {block.note}",
    )


def _row(name: str, block: Block) -> list[Entry]:
    return [Entry(name, ""), *block.rows[name]]


def frontier_tables(frontier: pd.DataFrame) -> list[HtmlTable]:
    """Return, for each unit of cost, the best method of each kind at every budget, and the difference."""
    return [_frontier(unit, rows) for unit, rows in frontier.groupby("unit", sort=False)]


def _frontier(unit: Any, rows: pd.DataFrame) -> HtmlTable:
    kinds = [kind for kind in KINDS if rows["kind"].eq(kind).any()]
    made = []
    for budget, own in rows.groupby("budget"):
        of_kind = {row["kind"]: row for row in own.to_dict("records")}
        best = (
            f"{of_kind[k]['method']} {percent(of_kind[k]['accuracy']):.1f}" if k in of_kind else INFEASIBLE
            for k in kinds
        )
        made.append(plain([budget_name(str(budget)), *best, *_intervals(of_kind.get(EARLY_EXITS))]))
    title = f"The best of each kind within a share of the backbone's {unit}, chosen on held-out samples; accuracy in %"
    note = ""
    if unit == MACS:
        note = (
            "Difference: early exits minus the best of the others, in points. Brackets: its 95 % interval over the"
            " test samples and, with three seeds or more, over trainings."
        )
    heads = ["budget", *kinds, "difference", "over samples", "over trainings"]
    if all(row[-1].text == INFEASIBLE for row in made):
        heads, made = heads[:-1], [row[:-1] for row in made]
    return HtmlTable(title, heads, [Group("", made)], note)


def _intervals(row: Mapping[Any, Any] | None) -> list[str]:
    if row is None or math.isnan(row["difference"]):
        return [INFEASIBLE] * 3
    ends = (("low", "high"), ("low_trainings", "high_trainings"))
    texts = [
        INFEASIBLE if math.isnan(row[low]) else f"[{points(row[low], True)}, {points(row[high], True)}]"
        for low, high in ends
    ]
    return [points(row["difference"], True), *texts]


def time_tables(
    times: Mapping[str, Mapping[str, Mapping[str, float]]], budgets: Sequence[str]
) -> list[HtmlTable]:
    """Return a table of measured times for each batch size; times: from `ztw.reporting.explorer.fastest_times`."""
    made = []
    for size, methods in times.items():
        base = methods.get(BACKBONE, {}).get("")
        rows = []
        for method, of_budget in methods.items():
            cells = [
                INFEASIBLE if budget not in of_budget else _time(of_budget[budget], base)
                for budget in budgets
            ]
            rows.append(
                plain([method, *cells, _time(of_budget[""], base) if "" in of_budget else INFEASIBLE])
            )
        title = f"Mean time of a sample in ms in the fastest runtime, batch size {size} (share of the backbone's time)"
        made.append(HtmlTable(title, ["", *map(budget_name, budgets), "without exits"], [Group("", rows)]))
    return made


def _time(ms: float, base: float | None) -> str:
    return f"{ms:#.3g}".rstrip(".") + (f" ({100 * ms / base:.0f} %)" if base else "")


def _means(metrics: Metrics, protocol: str, names: Sequence[str]) -> pd.Series:
    """Return the mean over seeds by (method, budget, metric)."""
    own = metrics[
        metrics["protocol"].eq(protocol) & metrics["metric"].isin(list(names)) & metrics["exit"].eq(0)
    ]
    return own.groupby(["method", "budget", "metric"])["value"].mean()


def calibration_table(metrics: Metrics, methods: Sequence[str], protocol: str, budget: str) -> HtmlTable:
    """Return the calibration of every method's predictions at one budget."""
    means = _means(metrics, protocol, list(CALIBRATION))
    rows = []
    for method in methods:
        values = [means.get((method, budget, name), math.nan) for name in CALIBRATION]
        if not all(map(math.isnan, values)):
            rows.append(
                plain([method, *(INFEASIBLE if math.isnan(value) else f"{value:.3f}" for value in values)])
            )
    title = f"Calibration of the predictions at {budget_name(budget)}; lower is better, for AUROC higher"
    return HtmlTable(title, ["", *CALIBRATION.values()], [Group("", rows)])


def threshold_table(
    metrics: Metrics, rules: Mapping[str, str], protocol: str, budgets: Sequence[str]
) -> HtmlTable:
    """Return the threshold of every method at each budget, mean over seeds; rules: method -> its rule in words."""
    means = _means(metrics, protocol, ["parameter"])
    rows = []
    for method, rule in rules.items():
        values = [means.get((method, budget, "parameter"), math.nan) for budget in budgets]
        rows.append(
            plain([method, rule, *(INFEASIBLE if math.isnan(value) else f"{value:.4g}" for value in values)])
        )
    title = "Threshold at each budget, mean over seeds"
    return HtmlTable(title, ["", "rule", *map(budget_name, budgets)], [Group("", rows)])


def duration_table(seconds: Mapping[str, float]) -> HtmlTable | None:
    """Return the time of each rule's jobs; None if it is not known."""
    rows = [plain([rule, clock(value)]) for rule, value in seconds.items()]
    return (
        HtmlTable("Duration of the jobs of each step", ["step", "time"], [Group("", rows)]) if rows else None
    )
