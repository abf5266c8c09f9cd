"""Test the table of the frontier and its sentences."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from ztw.reporting.frontier_figure import draw_frontier
from ztw.reporting.frontier_table import (
    COLUMNS,
    read_frontier,
    sentence,
    verdict,
    write_frontier,
)
from ztw.study.kinds import EARLY_EXITS, STATIC

NAN = math.nan


def early(
    budget: float, rival: str, low: float, high: float, method: str = "ztw", trainings: float = NAN
) -> dict:
    middle = (low + high) / 2
    more = {"low_trainings": middle - trainings, "high_trainings": middle + trainings}
    return {
        **{"dataset": "d", "arch": "net", "unit": "MACs", "budget": budget, "kind": EARLY_EXITS},
        **{"method": method, "held_out": 0.8, "accuracy": 0.8, "cost": budget, "n": 1},
        **{"rival": rival, "difference": middle, "low": low, "high": high, "seeds": 1, **more},
    }


def static(budget: float) -> dict:
    known = {"dataset": "d", "arch": "net", "unit": "MACs", "budget": budget, "kind": STATIC}
    return {**known, "method": "small", "held_out": 0.7, "accuracy": 0.7551, "cost": 0.2, "n": 1}


def test_a_verdict_needs_every_interval_to_exclude_0():
    assert verdict(early(0.5, "small", 0.01, 0.03)) == 1
    assert verdict(early(0.5, "small", -0.03, -0.01)) == -1
    assert verdict(early(0.5, "small", -0.01, 0.03)) == 0
    assert verdict(early(0.5, "small", 0.01, 0.03, trainings=0.05)) == 0
    assert verdict(early(0.5, "small", 0.01, 0.03, trainings=0.005)) == 1


def test_the_sentence_names_ranges_of_budgets():
    rows = [
        early(0.25, "small", -0.04, -0.03),
        early(0.5, "cascade", -0.02, -0.01),
        early(0.75, "small", -0.01, 0.01),
        early(1.0, "small", 0.01, 0.02, method="joint"),
    ]
    assert sentence("d", "net", "MACs", rows) == (
        "d, net: from 25 % to 50 % of the backbone's MACs, small and cascade beat early exits (ztw) by 1.5 to 3.5"
        " points; at 75 % of the backbone's MACs, early exits (ztw) and small are level within noise; at 100 % of the"
        " backbone's MACs, early exits (joint) beat small by 1.5 points."
    )
    assert sentence("d", "net", "MACs", rows[:1]).endswith("small beats early exits (ztw) by 3.5 points.")


def test_without_a_rival_the_sentence_says_so():
    alone = early(0.5, "", NAN, NAN)
    assert sentence("d", "net", "MACs", [alone]) == (
        "d, net: no static network, cascade or fixed exit within the budgets to compare early exits with."
    )


def test_the_table_is_written_and_read(tmp_path):
    rows = [static(0.25), static(0.5), early(0.5, "small", 0.0104, 0.0304, trainings=0.001)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    csv, md = tmp_path / "frontier.csv", tmp_path / "frontier.md"
    write_frontier(table, csv, md)
    lines = [line for line in md.read_text().splitlines() if line.startswith("|")]
    assert lines == [
        "| budget | static network | early exits | difference |",
        "|---|---:|---:|---:|",
        "| 25 % | small 75.5 | - | - |",
        "| 50 % | small 75.5 | ztw 80.0 | +2.0 [+1.0, +3.0] [+1.9, +2.1] |",
    ]
    caption, *titles = [line for line in md.read_text().splitlines() if line.startswith("**")]
    assert caption.startswith("**The best method of each kind within a budget")
    assert titles == ["**net on d: MACs**"]
    again = read_frontier(csv)
    assert list(again["method"]) == ["small", "small", "ztw"]
    assert again["difference"].tolist() == pytest.approx([NAN, NAN, 0.0204], nan_ok=True)
    assert md.read_text().splitlines()[-1] == (
        "d, net: at 50 % of the backbone's MACs, early exits (ztw) beat small by 2.0 points."
    )
    assert len(draw_frontier(again[:0], "d, net").axes) == 1, "no method fits any budget"
    axes = draw_frontier(again, "d, net").axes
    assert [line.get_label() for line in axes[0].lines] == [STATIC, EARLY_EXITS]
