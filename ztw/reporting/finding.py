"""Say in a sentence what the main figure shows, from numbers that thresholds on held-out samples gave."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ztw.evaluation.trainings import over_trainings
from ztw.reporting.figures import accuracy_within
from ztw.study.kinds import CASCADE, STATIC

HALF = 0.5
WORDS = {0.25: "a quarter of the MACs", 0.5: "half the MACs", 0.75: "three quarters of the MACs"}
# (first method, second method) -> difference of their test accuracies, and whether it is known: 1, -1, or 0 = noise
Differences = Mapping[tuple[str, str], tuple[float, int]]


def finding(
    curves: pd.DataFrame,
    metrics: pd.DataFrame,
    differences: pd.DataFrame,
    headline: Collection[str],
    kinds: Mapping[str, str],
    budgets: Iterable[Any],
) -> str:
    """Compare the two best headline methods and the best network without exits, at the budget nearest to a half.

    The best are those with the highest accuracy on the validation split. The differences are those of the test split,
    with the interval over the test samples and, with three seeds or more, over trainings. Return "" if nothing can be
    compared.

    Args:
        curves: rows of one data set and architecture; only the validation split is used.
        metrics, differences: of the same data set and architecture.
        kinds: method -> kind, see `ztw.study.kinds`; without methods that must not take part.
    """
    held_out = curves[curves["split"].eq("validation")]
    numbers = sorted((b for b in budgets if isinstance(b, int | float)), key=lambda b: (abs(b - HALF), b))
    early = [method for method in headline if kinds.get(method) not in (None, STATIC, CASCADE)]
    others = [method for method, kind in kinds.items() if kind in (STATIC, CASCADE)]
    for budget in numbers:
        known = _differences(differences, metrics, str(budget))
        best, rivals = _ranked(held_out, early, budget)[:2], _ranked(held_out, others, budget)[:1]
        where = f"at {WORDS.get(budget, f'{100 * budget:g} % of the MACs')}"
        if parts := _parts(best, {rival: _named(rival, kinds[rival]) for rival in rivals}, known, where):
            return "; ".join(parts)
    return ""


def _ranked(held_out: pd.DataFrame, methods: Sequence[str], budget: float) -> list[str]:
    """Return the methods that are feasible for all their seeds, the highest mean validation accuracy first."""
    means = {}
    for method in methods:
        rows = held_out[held_out["method"].eq(method)]
        found = [accuracy_within(own, np.array([budget]))[0] for _, own in rows.groupby("seed")]
        if found and not np.isnan(found).any():
            means[method] = float(np.mean(found))
    return sorted(means, key=lambda method: -round(means[method], 9))


def _differences(rows: pd.DataFrame, metrics: pd.DataFrame, budget: str) -> Differences:
    """Return the known differences of all pairs, in both orders, by protocol held-out."""
    rows = rows[rows["protocol"].eq("held-out") & rows["budget"].eq(budget)]
    own = metrics[metrics["metric"].eq("accuracy") & metrics["protocol"].eq("held-out")]
    seeds = own[own["budget"].eq(budget)].pivot_table(index="seed", columns="method", values="value")
    known = {}
    for row in rows.to_dict("records"):
        first, second = row["first"], row["second"]
        ends = [row["low"], row["high"]]
        if first in seeds and second in seeds:
            each = over_trainings((seeds[first] - seeds[second]).dropna().tolist())
            ends += [end for end in each if not math.isnan(end)]
        verdict = int(min(ends) > 0) - int(max(ends) < 0)
        known[first, second] = (row["difference"], verdict)
        known[second, first] = (-row["difference"], -verdict)
    return known


def _named(method: str, kind: str) -> str:
    return f"the cascade {method}" if kind == CASCADE else f"{method} alone"


def _parts(best: Sequence[str], rivals: Mapping[str, str], known: Differences, where: str) -> list[str]:
    """Return what is known of the best methods with early exits, and of their rivals (method -> its name)."""
    parts = []
    if len(best) == 2 and (best[0], best[1]) in known:
        parts.append(_pair(best[0], best[1], *known[best[0], best[1]], where))
    for rival, name in rivals.items():
        if best and (rival, best[0]) in known:
            alone = _pair(name, best[0], *known[rival, best[0]], where)
            parts.append(_rival(rival, name, best, known) if parts else alone)
    return parts


def _pair(first: str, second: str, difference: float, verdict: int, where: str) -> str:
    if verdict == 0:
        return f"{first} and {second} are level within noise {where}"
    winner, loser = (first, second) if verdict > 0 else (second, first)
    return f"{winner} beats {loser} by {_points(difference)} {where}"


def _rival(rival: str, name: str, best: Sequence[str], known: Differences) -> str:
    """Compare a rival with the best two methods."""
    verdicts = [known.get((rival, method), (0.0, 0))[1] for method in best]
    if verdicts[0] == 0:
        return f"{name} and {best[0]} are level within noise"
    both = verdicts[0] == verdicts[1]
    if verdicts[0] > 0:
        return f"{name} beats {'both' if both else best[0]}"
    return f"both beat {name}" if both else f"{best[0]} beats {name}"


def _points(difference: float) -> str:
    number = f"{100 * abs(difference):.1f}"
    return "less than 0.1 points" if number == "0.0" else f"{number} point{'s' * (number != '1.0')}"
