"""Test the sentences on top of a report."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from ztw.reporting.answer import frontier_answers, leader_answer, middle_budget
from ztw.study.kinds import CASCADE, EARLY_EXITS, STATIC

KINDS = {"ztw": EARLY_EXITS, "sdn": EARLY_EXITS, "small": STATIC, "two": CASCADE}
NAN = math.nan


def early(
    budget: float, rival: str, low: float, high: float, unit: str = "MACs", method: str = "ztw"
) -> dict:
    return {
        **{"unit": unit, "budget": budget, "kind": EARLY_EXITS, "method": method, "rival": rival},
        **{"difference": (low + high) / 2, "low": low, "high": high},
        **{"low_trainings": NAN, "high_trainings": NAN},
    }


def test_budgets_with_the_same_winner_share_a_sentence():
    rows = [
        early(0.25, "small", -0.04, -0.03),
        early(0.5, "two", -0.03, -0.01, method="sdn"),
        early(0.75, "small", -0.01, 0.02),
        early(1.0, "small", 0.01, 0.03),
    ]
    assert frontier_answers(pd.DataFrame(rows), KINDS) == [
        "**From 25 % to 50 % of the backbone's MACs, static networks and cascades of networks win:** `small` and `two`"
        " beat the best early exits (`ztw` and `sdn`) by 2.0 [1.0, 3.0] to 3.5 [3.0, 4.0] points.",
        "**At 75 % of the backbone's MACs, neither side wins:** the best early exits (`ztw`) and `small` differ by"
        " +0.5 [−1.0, +2.0] points.",
        "**At 100 % of the backbone's MACs, early exits win:** the best early exits (`ztw`) beat `small` by"
        " 2.0 [1.0, 3.0] points.",
    ]


def test_of_measured_times_only_the_first_is_told():
    units = ["time (batch size 1, 2 threads)", "time (batch size 64, 2 threads)"]
    found = frontier_answers(pd.DataFrame([early(0.5, "small", 0.01, 0.03, unit) for unit in units]), KINDS)
    (line,) = found
    assert line.startswith("**At 50 % of the backbone's time (batch size 1, 2 threads), early exits win:**")


def test_without_a_rival_there_is_no_sentence():
    assert frontier_answers(pd.DataFrame([early(0.5, "", NAN, NAN)]), KINDS) == []


def accuracies(**means: float) -> pd.DataFrame:
    return pd.DataFrame([{"method": name, "budget": "0.5", "mean": mean} for name, mean in means.items()])


def difference(first: str, second: str, low: float, high: float) -> dict[str, str]:
    noise = str(low <= 0 <= high)
    numbers = {"difference": str((low + high) / 2), "low": str(low), "high": str(high), "within_noise": noise}
    return {"budget": "0.5", "first": first, "second": second, **numbers}


def test_the_leader_is_compared_with_every_other():
    rows = [
        difference("sdn", "ztw", -0.03, -0.01),
        difference("ztw", "pabee", 0.05, 0.07),
        difference("ztw", "cascade", -0.01, 0.02),
        difference("sdn", "pabee", 0.02, 0.05),
        difference("ztw", "resnet8", 0.1, 0.2),
    ]
    differences = pd.DataFrame(rows)
    found = accuracies(sdn=0.81, ztw=0.833, pabee=0.769, cascade=0.832)
    assert leader_answer(found, differences, "0.5") == (
        "**Among early exits at 50 %, `ztw` leads with 83.3 %**, ahead of 2 others by 2.0 [1.0, 3.0] (`sdn`) to"
        " 6.0 [5.0, 7.0] points (`pabee`) and within noise of `cascade`."
    )
    assert leader_answer(accuracies(ztw=0.833, sdn=0.81), differences, "0.5") == (
        "**Among early exits at 50 %, `ztw` leads with 83.3 %**, ahead of `sdn` by 2.0 [1.0, 3.0] points."
    )
    assert leader_answer(accuracies(ztw=0.8), differences, "0.5") is None


@pytest.mark.parametrize(
    ("budgets", "middle"),
    [([0.25, 0.6, "max"], "0.6"), (["0.9", "1.5"], "0.9"), (["max"], "max"), ([], "max")],
)
def test_the_middle_budget_is_the_one_nearest_to_half(budgets, middle):
    assert middle_budget(budgets) == middle
