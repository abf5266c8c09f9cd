"""Test the sentence in the title of the main figure."""

from __future__ import annotations

import pandas as pd
import pytest
from metrics_by_hand import at_budget, result, results

from ztw.reporting.finding import finding
from ztw.reporting.readable import DIFFERENCES
from ztw.study.kinds import CASCADE, EARLY_EXITS, STATIC

KINDS = {"ztw": EARLY_EXITS, "sdn": EARLY_EXITS, "small": STATIC, "a-b": CASCADE}
# Accuracy on the validation split, in the order of KINDS
HELD_OUT = {"ztw": 0.83, "sdn": 0.81, "small": 0.86, "a-b": 0.7}


def curves(held_out: dict[str, float], cost: float = 0.4, seeds: int = 1) -> pd.DataFrame:
    """Return curves of one point per method; the test split, which must not choose, has the opposite order."""
    rows = [
        {"method": name, "seed": seed, "split": split, "relative_cost": cost, "accuracy": accuracy}
        for seed in range(seeds)
        for name, own in held_out.items()
        for split, accuracy in (("validation", own), ("test", 1 - own))
    ]
    return pd.DataFrame(rows)


def pair(first: str, second: str, low: float, high: float, budget: str = "0.5") -> dict:
    values = ("d", "a", "held-out", budget, first, second, (low + high) / 2, low, high, low < 0 < high, 1)
    return dict(zip(DIFFERENCES, values, strict=True))


def said(
    *pairs: dict,
    held_out: dict[str, float] = HELD_OUT,
    methods: tuple[str, ...] = ("sdn", "ztw"),
    budgets: tuple = (0.25, 0.5, 1.0, "max"),
    metrics: pd.DataFrame | None = None,
    cost: float = 0.4,
) -> str:
    table = pd.DataFrame(pairs, columns=list(DIFFERENCES))
    metrics = result([]) if metrics is None else metrics
    return finding(curves(held_out, cost), metrics, table, methods, KINDS, budgets)


BEATS_BOTH = (
    pair("sdn", "ztw", -0.03, -0.01),
    pair("ztw", "small", -0.03, -0.02),
    pair("small", "sdn", 0.02, 0.05),
)


def test_the_best_two_methods_and_the_best_network_without_exits_are_compared():
    assert said(*BEATS_BOTH) == "ztw beats sdn by 2.0 points at half the MACs; small alone beats both"


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (
            [pair("ztw", "sdn", -0.01, 0.03), pair("small", "ztw", 0.01, 0.02)],
            "ztw and sdn are level within noise at half the MACs; small alone beats ztw",
        ),
        (
            [pair("ztw", "sdn", -0.03, -0.01), pair("small", "ztw", -0.02, -0.01)],
            "sdn beats ztw by 2.0 points at half the MACs; ztw beats small alone",
        ),
        (
            [pair("ztw", "sdn", 0.0001, 0.0003), pair("small", "ztw", -0.01, 0.01)],
            "ztw beats sdn by less than 0.1 points at half the MACs; small alone and ztw are level within noise",
        ),
        (
            [
                pair("ztw", "sdn", 0.005, 0.015),
                pair("small", "ztw", -0.03, -0.02),
                pair("small", "sdn", -0.02, -0.01),
            ],
            "ztw beats sdn by 1.0 point at half the MACs; both beat small alone",
        ),
        ([pair("ztw", "sdn", 0.01, 0.03, "0.25")], ""),
        ([], ""),
    ],
)
def test_every_case_has_its_words(pairs, sentence):
    assert said(*pairs, budgets=(0.5, 1.0)) == sentence


def test_one_method_is_compared_with_a_cascade_or_alone():
    cascade = {**HELD_OUT, "a-b": 0.9}
    pairs = [pair("ztw", "a-b", -0.03, -0.01), pair("ztw", "small", 0.01, 0.03)]
    one = said(*pairs, held_out=cascade, methods=("ztw",))
    assert one == "the cascade a-b beats ztw by 2.0 points at half the MACs"
    without = {"ztw": 0.8, "sdn": 0.7}
    assert (
        said(pair("ztw", "sdn", 0.01, 0.03), held_out=without)
        == "ztw beats sdn by 2.0 points at half the MACs"
    )


def test_without_two_methods_within_half_the_next_budget_is_taken():
    rows = [pair("ztw", "sdn", 0.01, 0.03, budget) for budget in ("0.25", "0.5", "0.75", "0.9")]
    no_rival = {"ztw": 0.8, "sdn": 0.7}
    budgets = (0.25, 0.5, 0.75, 0.9)
    assert said(*rows, held_out=no_rival, budgets=budgets, cost=0.7).endswith("at three quarters of the MACs")
    assert said(*rows, held_out=no_rival, budgets=budgets, cost=0.8).endswith("at 90 % of the MACs")
    assert said(*rows, held_out=no_rival, budgets=budgets, cost=0.95) == ""


def test_three_seeds_that_disagree_are_noise():
    def seeds(*differences: float) -> pd.DataFrame:
        parts = [
            result(at_budget("0.5", 0.8 + own, 0.4), method, seed)
            for seed, difference in enumerate(differences)
            for method, own in (("ztw", difference), ("sdn", 0.0))
        ]
        return results(*parts)

    row = pair("ztw", "sdn", 0.01, 0.03)
    known = {"ztw": 0.8, "sdn": 0.7}
    assert "beats" in said(row, held_out=known, metrics=seeds(0.019, 0.02, 0.021))
    assert "level within noise" in said(row, held_out=known, metrics=seeds(-0.02, 0.02, 0.06))
    assert "beats" in said(row, held_out=known, metrics=seeds(-0.02, 0.06)), "two seeds have no interval"


def test_without_a_validation_split_there_is_no_sentence():
    table, rows = pd.DataFrame(BEATS_BOTH), curves(HELD_OUT)
    assert finding(rows[rows["split"] == "test"], result([]), table, ["ztw", "sdn"], KINDS, [0.5]) == ""
