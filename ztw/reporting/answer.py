"""Say in sentences what a study found, with intervals: the answer on top of its report. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from ztw.reporting.frontier_table import MACS, verdict
from ztw.reporting.readable import PLURALS, budget_name, percent
from ztw.study.kinds import EARLY_EXITS

Row = Mapping[Any, Any]
BRACKETS = "Brackets: 95 % interval over the test samples."
WINS = "One side wins if this interval excludes 0; with three seeds or more, the interval over trainings must, too."


def middle_budget(budgets: Iterable[float | str]) -> str:
    """Return the budget nearest to half of the backbone's cost, as in the tables; "max" if there is no number."""
    numbers = [budget for budget in budgets if budget != "max"]
    return str(min(numbers, key=lambda budget: abs(float(budget) - 0.5), default="max"))


def frontier_answers(frontier: pd.DataFrame, kinds: Mapping[str, str]) -> list[str]:
    """Return sentences on early exits against everything else, in MACs and in the first measured time.

    Args:
        frontier: from `read_frontier`, of one data set and architecture.
        kinds: method -> kind.
    """
    units = list(frontier["unit"].unique())
    times = [unit for unit in units if unit != MACS]
    found = []
    for unit in [*(unit for unit in units if unit == MACS), *times[:1]]:
        rows = frontier[frontier["unit"].eq(unit) & frontier["kind"].eq(EARLY_EXITS)]
        rows = rows[rows["rival"].ne("") & rows["difference"].notna()].sort_values("budget")
        for word, own in groupby(rows.to_dict("records"), key=verdict):
            found.append(_on_frontier(unit, word, list(own), kinds))
    return found


def _on_frontier(unit: str, word: int, rows: Sequence[Row], kinds: Mapping[str, str]) -> str:
    """Describe consecutive budgets with the same verdict."""
    first, last = (budget_name(row["budget"]) for row in (rows[0], rows[-1]))
    where = f"At {first}" if first == last else f"From {first} to {last}"
    rivals = list(dict.fromkeys(row["rival"] for row in rows))
    early = f"the best early exits ({_listed(row['method'] for row in rows)})"
    if word == 0:
        how = "neither side wins"
        what = f"{early} and {_listed(rivals)} differ by {_range(rows, 1, signed=True)}"
    elif word > 0:
        how, what = "early exits win", f"{early} beat {_listed(rivals)} by {_range(rows, 1)}"
    else:
        how = f"{_winners(rivals, kinds)} win"
        what = f"{_listed(rivals)} beat{'s' * (len(rivals) == 1)} {early} by {_range(rows, -1)}"
    return f"**{where} of the backbone's {unit}, {how}:** {what}."


def _winners(rivals: Iterable[str], kinds: Mapping[str, str]) -> str:
    found = dict.fromkeys(PLURALS[kinds[rival]] for rival in rivals)
    return " and ".join(found)


def _range(rows: Iterable[Row], sign: int, signed: bool = False) -> str:
    """Return the smallest and the largest difference with their intervals, in points."""
    found = [(sign * row["difference"], *sorted((sign * row["low"], sign * row["high"]))) for row in rows]
    texts = [_interval(*ends, signed=signed) for ends in sorted(found)]
    return f"{texts[0]} points" if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]} points"


def _interval(difference: float, low: float, high: float, *, signed: bool = False) -> str:
    return f"{points(difference, signed)} [{points(low, signed)}, {points(high, signed)}]"


def points(share: float, signed: bool = False) -> str:
    """Format a difference of shares in points, e.g. "2.3"; signed: "+2.3". The minus is a real one."""
    text = f"{100 * share:+.1f}" if signed else f"{100 * share:.1f}"
    return ("0.0" if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}")


def leader_answer(accuracies: pd.DataFrame, differences: pd.DataFrame, budget: str) -> str | None:
    """Return a sentence on the most accurate method with early exits; None with fewer than two methods.

    Args:
        accuracies: rows of the accuracy table of one protocol and of methods with early exits only.
        differences: rows of the table of differences, of the same data set, architecture and protocol.
        budget: as in the tables.
    """
    here = accuracies[accuracies["budget"].eq(budget) & accuracies["mean"].notna()]
    if len(here) < 2:
        return None
    best = here.iloc[int(here["mean"].to_numpy().argmax())]
    level, ahead = _compared(
        best["method"], list(here["method"]), differences[differences["budget"].eq(budget)]
    )
    start = f"**Among early exits at {budget_name(budget)}, {_listed([best['method']])} leads"
    start += f" with {percent(best['mean']):.1f} %"
    return f"{start}**{_and([*_ahead(ahead), *_level(level)])}."


def _compared(
    best: str, methods: Sequence[str], differences: pd.DataFrame
) -> tuple[list[str], list[tuple[str, float, float, float]]]:
    """Return the methods within noise of the best; and (method, difference, low, high) of the others, nearest first."""
    level, ahead = [], []
    for row in differences.to_dict("records"):
        pair = (row["first"], row["second"])
        other = pair[pair[0] == best]
        if best not in pair or other not in methods or row["difference"] == "":
            continue
        sign = 1 if pair[0] == best else -1
        low, high = sorted(sign * float(row[name]) for name in ("low", "high"))
        if str(row["within_noise"]) == "True":
            level.append(other)
        else:
            ahead.append((other, sign * float(row["difference"]), low, high))
    return level, sorted(ahead, key=lambda found: found[1])


def _ahead(others: Sequence[tuple[str, float, float, float]]) -> Iterator[str]:
    texts = [(name, _interval(difference, low, high)) for name, difference, low, high in others]
    if len(texts) == 1:
        yield "ahead of `{}` by {} points".format(*texts[0])
    elif texts:
        (near, least), (far, most) = texts[0], texts[-1]
        yield f"ahead of {len(texts)} others by {least} (`{near}`) to {most} points (`{far}`)"


def _level(others: Sequence[str]) -> Iterator[str]:
    if others:
        yield f"within noise of {_listed(others)}"


def _and(parts: Sequence[str]) -> str:
    return f", {' and '.join(parts)}" if parts else ""


def _listed(names: Iterable[str]) -> str:
    """Join names: "`a`", "`a` and `b`", "`a`, `b` and `c`"; each once."""
    *most, last = (f"`{name}`" for name in dict.fromkeys(names))
    return f"{', '.join(most)} and {last}" if most else last
