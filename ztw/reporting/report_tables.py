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
from ztw.reporting.readable import INFEASIBLE, Entry, Mark, accuracy_text, budget_name, percent
from ztw.reporting.results import Metrics
from ztw.study.kinds import CASCADE, EARLY_EXITS, FIXED_EXIT, KINDS, STATIC

# Kind -> title of its group, in the order of the table
GROUPS = {
    EARLY_EXITS: "early exits",
    FIXED_EXIT: "one fixed exit",
    CASCADE: "cascades of networks",
    STATIC: "static networks",
}
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


def accuracy_table(
    rows: pd.DataFrame, differences: Iterable[Mapping[str, str]], kinds: Mapping[str, str], seeds: int
) -> HtmlTable:
    """Return accuracy at every budget. In each group the best, and what is within noise of it, are marked.

    Args:
        rows: of the accuracy table, of one data set, architecture and protocol.
        differences: rows of the table of differences, of the same.
        kinds: method -> kind.
    """
    noise = {
        (row["budget"], *sorted((row["first"], row["second"])))
        for row in differences
        if row["within_noise"] == "True"
    }
    budgets = [budget for budget in dict.fromkeys(rows["budget"]) if budget not in ("", INFEASIBLE)]
    groups = []
    for kind, title in GROUPS.items():
        own = rows[rows["method"].map(kinds).eq(kind)]
        if len(own):
            made = _marked(own, budgets, noise, seeds)
            groups.append(Group(title, (_backbone(rows, budgets, seeds) if kind == STATIC else []) + made))
    if not any(group.title == GROUPS[STATIC] for group in groups) and (
        alone := _backbone(rows, budgets, seeds)
    ):
        groups.append(Group(GROUPS[STATIC], alone))
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return HtmlTable(
        f"Test accuracy (%) within a share of the backbone's MACs, {spread}",
        ["", *map(budget_name, budgets)],
        groups,
        "Bold: the best of its group. ≈: within noise of the group's best, by a 95 % paired bootstrap over the test"
        " samples, so of two equal numbers one can be within noise and the other not. –: the budget is too small."
        f" {BACKBONE.capitalize()}: for comparison, without marks.",
    )


def _marked(
    rows: pd.DataFrame, budgets: Sequence[str], noise: set[tuple[str, ...]], seeds: int
) -> list[list[Entry]]:
    at = {(row["method"], row["budget"]): row for row in rows.to_dict("records")}
    methods = list(dict.fromkeys(rows["method"]))
    leaders = {}
    for budget in budgets:
        found = [at[method, budget] for method in methods if not math.isnan(at[method, budget]["mean"])]
        leaders[budget] = max(found, key=lambda row: row["mean"], default=None)
    return [
        [
            Entry(method, ""),
            *(_entry(at[method, budget], leaders[budget], noise, seeds) for budget in budgets),
        ]
        for method in methods
    ]


def _entry(
    row: Mapping[Any, Any], leader: Mapping[Any, Any] | None, noise: set[tuple[str, ...]], seeds: int
) -> Entry:
    mark: Mark = ""
    if leader is not None and percent(row["mean"]) == percent(leader["mean"]):
        mark = "best"
    elif leader is not None and (row["budget"], *sorted((row["method"], leader["method"]))) in noise:
        mark = "same"
    return Entry(_accuracy(row, seeds), mark)


def _accuracy(row: Mapping[Any, Any], seeds: int) -> str:
    return "–" if math.isnan(row["mean"]) else accuracy_text({**row, "n": int(row["n"])}, seeds)


def _backbone(rows: pd.DataFrame, budgets: Sequence[str], seeds: int) -> list[list[Entry]]:
    """Return the row of the backbone alone, which is not a method; none if its accuracy is not known."""
    found = rows[rows["method"].eq(BACKBONE) & rows["budget"].isin(["", INFEASIBLE])].to_dict("records")
    if not found:
        return []
    text = _accuracy(found[0], seeds)
    return [
        plain([BACKBONE, *(text if budget == "max" or float(budget) >= 1 else "–" for budget in budgets)])
    ]


def frontier_tables(frontier: pd.DataFrame) -> list[HtmlTable]:
    """Return, for each unit of cost, the best method of each kind at every budget, and the difference."""
    return [_frontier(unit, rows) for unit, rows in frontier.groupby("unit", sort=False)]


def _frontier(unit: Any, rows: pd.DataFrame) -> HtmlTable:
    kinds = [kind for kind in KINDS if rows["kind"].eq(kind).any()]
    made = []
    for budget, own in rows.groupby("budget"):
        of_kind = {row["kind"]: row for row in own.to_dict("records")}
        best = (
            f"{of_kind[k]['method']} {percent(of_kind[k]['accuracy']):.1f}" if k in of_kind else "–"
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
    if all(row[-1].text == "–" for row in made):
        heads, made = heads[:-1], [row[:-1] for row in made]
    return HtmlTable(title, heads, [Group("", made)], note)


def _intervals(row: Mapping[Any, Any] | None) -> list[str]:
    if row is None or math.isnan(row["difference"]):
        return ["–"] * 3
    ends = (("low", "high"), ("low_trainings", "high_trainings"))
    texts = [
        "–" if math.isnan(row[low]) else f"[{points(row[low], True)}, {points(row[high], True)}]"
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
            cells = ["–" if budget not in of_budget else _time(of_budget[budget], base) for budget in budgets]
            rows.append(plain([method, *cells, _time(of_budget[""], base) if "" in of_budget else "–"]))
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
            rows.append(plain([method, *("–" if math.isnan(value) else f"{value:.3f}" for value in values)]))
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
            plain([method, rule, *("–" if math.isnan(value) else f"{value:.4g}" for value in values)])
        )
    title = "Threshold at each budget, mean over seeds"
    return HtmlTable(title, ["", "rule", *map(budget_name, budgets)], [Group("", rows)])


def duration_table(seconds: Mapping[str, float]) -> HtmlTable | None:
    """Return the time of each rule's jobs; None if it is not known."""
    rows = [plain([rule, clock(value)]) for rule, value in seconds.items()]
    return (
        HtmlTable("Duration of the jobs of each step", ["step", "time"], [Group("", rows)]) if rows else None
    )
