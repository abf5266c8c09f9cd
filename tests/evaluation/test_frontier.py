"""Test the frontier: the best method of each kind at every budget, chosen on held-out samples."""

from __future__ import annotations

import math

import pytest
import torch

from ztw.evaluation.frontier import Point, best_of_kinds, compare, frontier, over_trainings, rival_of
from ztw.study.kinds import CASCADE, EARLY_EXITS, FIXED_EXIT, STATIC


def point(method: str, kind: str, cost: float, held_out: float, right: int, seeds: int = 1) -> Point:
    """Return a point that classifies the first `right` of 10 test samples correctly, in every seed."""
    correct = (torch.arange(10) < right).byte()
    return Point(
        method, kind, cost, dict.fromkeys(range(seeds), held_out), dict.fromkeys(range(seeds), correct)
    )


POINTS = [
    point("small", STATIC, 0.2, 0.6, 6),
    point("large", STATIC, 1.0, 0.9, 9),
    point("cascade", CASCADE, 0.5, 0.7, 7),
    point("cut", FIXED_EXIT, 0.4, 0.5, 10),
    point("a", EARLY_EXITS, 0.3, 0.65, 5),
    point("b", EARLY_EXITS, 0.3, 0.66, 4),
    point("b", EARLY_EXITS, 0.8, 0.95, 10),
]


def test_held_out_accuracy_chooses_and_test_accuracy_does_not():
    best = best_of_kinds(POINTS, 0.5)
    assert {kind: one.method for kind, one in best.items()} == {
        STATIC: "small",
        CASCADE: "cascade",
        FIXED_EXIT: "cut",
        EARLY_EXITS: "b",
    }
    rival = rival_of(best)
    assert rival is not None
    assert rival.method == "cascade", "the cut network is better on the test samples only"
    assert rival_of({EARLY_EXITS: POINTS[-1]}) is None


def test_a_point_outside_the_budget_takes_no_part_and_a_tie_goes_to_the_cheapest():
    assert best_of_kinds(POINTS, 0.1) == {}
    tie = [point("dear", STATIC, 0.5, 0.6, 6), *POINTS]
    assert best_of_kinds(tie, 0.5)[STATIC].method == "small"


def test_rows_by_hand():
    rows = frontier(POINTS, [0.3, 1.0])
    assert [(row["budget"], row["kind"], row["method"], row["accuracy"]) for row in rows] == [
        (0.3, STATIC, "small", 0.6),
        (0.3, EARLY_EXITS, "b", 0.4),
        (1.0, STATIC, "large", 0.9),
        (1.0, CASCADE, "cascade", 0.7),
        (1.0, FIXED_EXIT, "cut", 1.0),
        (1.0, EARLY_EXITS, "b", 1.0),
    ]
    first, last = rows[1], rows[-1]
    assert (first["rival"], first["difference"]) == ("small", pytest.approx(-0.2))
    assert (last["rival"], last["difference"], last["seeds"]) == ("large", pytest.approx(0.1), 1)
    assert math.isnan(last["low_trainings"])


def test_only_common_seeds_are_compared():
    found = compare(point("a", EARLY_EXITS, 0.5, 0.5, 8, seeds=3), point("b", STATIC, 0.5, 0.5, 6, seeds=2))
    assert found is not None
    assert (found.seeds, found.difference) == (2, pytest.approx(0.2))
    none = Point("c", STATIC, 0.5, {7: 0.5}, {7: torch.ones(10)})
    assert compare(point("a", EARLY_EXITS, 0.5, 0.5, 8), none) is None


def test_the_interval_over_trainings_by_hand():
    """Three differences 1, 2, 3: mean 2, std 1, t(0.975, 2) = 4.302653."""
    low, high = over_trainings([1.0, 2.0, 3.0])
    assert (low, high) == (
        pytest.approx(2 - 4.302653 / math.sqrt(3)),
        pytest.approx(2 + 4.302653 / math.sqrt(3)),
    )
    assert math.isnan(over_trainings([1.0, 2.0])[0])
