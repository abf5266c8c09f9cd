"""Test the numbers behind the report's slider."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ztw
from ztw.evaluation.metrics import at_budget
from ztw.exits.sweep import Curve
from ztw.reporting.explorer import fastest_times, operating_points, shares_at, slider_budgets, within_budgets
from ztw.reporting.results import read_curves

REFERENCE = Path(__file__).parents[2] / "results/reference"


def curve(
    split: str, cost: list[float], accuracy: list[float], parameter: list[float] | None = None
) -> pd.DataFrame:
    values = {"parameter": parameter or [float(t) for t in range(len(cost))]}
    values |= {"relative_cost": cost, "accuracy": accuracy, "exit_fraction_1": [1 - c for c in cost]}
    return pd.DataFrame(values).assign(split=split, seed=0, method="ztw")


def test_the_validation_split_chooses_and_the_test_split_is_shown():
    validation = curve("validation", [0.2, 0.5, 0.5, 0.9], [0.6, 0.8, 0.7, 0.9])
    test = curve("test", [0.25, 0.48, 0.52, 0.88], [0.5, 0.65, 0.66, 0.85])
    found = within_budgets(pd.concat([validation, test]), np.array([0.1, 0.2, 0.5, 1.0]))
    assert found["budget"].tolist() == [0.2, 0.5, 1.0], "nothing fits 0.1"
    assert found["parameter"].tolist() == [0.0, 2.0, 3.0], "the last one of two equal costs"
    assert found["accuracy"].tolist() == [0.5, 0.66, 0.85]
    assert found["relative_cost"].tolist() == [0.25, 0.52, 0.88]


def test_without_a_validation_split_the_test_split_chooses():
    found = within_budgets(curve("test", [0.2, 0.6], [0.5, 0.7]), np.array([0.5]))
    assert found["accuracy"].tolist() == [0.5]


def test_it_chooses_as_the_metrics_do(logits, labels, cost):
    split = {"validation": slice(100), "test": slice(100, 200)}
    curves: dict[str, Curve] = {}
    for name, part in split.items():
        parameters = None if not curves else curves["validation"].parameter
        curves[name] = ztw.sweep(logits[:, part], labels[part], cost, "max_softmax", parameters)
    rows = pd.concat(
        pd.DataFrame(
            {
                "split": name,
                "parameter": own.parameter,
                "accuracy": own.accuracy,
                "relative_cost": own.cost / 8.0,
            }
        )
        for name, own in curves.items()
    )
    budgets = slider_budgets([0.25, 0.333, "max"])
    picked = at_budget(curves["validation"], budgets.tolist(), 8.0)
    expected = [float(curves["test"].accuracy[index]) for index in picked if index is not None]
    assert within_budgets(rows, budgets)["accuracy"].tolist() == expected


def test_means_are_over_the_seeds_that_a_budget_fits():
    both = [curve("test", [0.2, 0.6], [0.5, 0.7]), curve("test", [0.4, 0.6], [0.6, 0.8]).assign(seed=1)]
    points = operating_points(pd.concat(both), np.array([0.1, 0.3, 0.5]))
    assert points["n"].tolist() == [0, 1, 2]
    assert points["accuracy"].tolist()[1:] == pytest.approx([0.5, 0.55])
    assert math.isnan(points["accuracy"].iloc[0])
    assert points["std"].tolist()[2] == pytest.approx(0.0707106, abs=1e-6)
    assert shares_at(points, pd.DataFrame(), "held-out") == {0.3: [0.8], 0.5: [pytest.approx(0.7)]}


def test_published_curves_lack_shares_which_come_from_the_metrics():
    points = operating_points(curve("test", [0.2], [0.5]).drop(columns="exit_fraction_1"), np.array([0.5]))
    rows = [("0.5", 1, 0.7), ("0.5", 2, 0.3), ("0.5", 1, 0.5), ("0.5", 2, 0.5), ("max", 1, 0.1)]
    metrics = pd.DataFrame(rows, columns=["budget", "exit", "value"])
    metrics = metrics.assign(metric="exit_fraction", protocol="held-out")
    assert shares_at(points, metrics, "held-out") == {0.5: [pytest.approx(0.6), pytest.approx(0.4)]}


@pytest.mark.parametrize("study", ["quick", "debian-sections-minilm"])
def test_the_numbers_are_those_of_the_published_table(study):
    """To the table's six decimals, at every budget, for every method."""
    table = pd.read_csv(REFERENCE / study / "tables/accuracy_at_budget.csv", dtype={"budget": str})
    table = table[table["protocol"].eq("held-out") & table["budget"].ne("max") & table["budget"].notna()]
    curves = read_curves(sorted((REFERENCE / study).glob("*/*/seed*/curves/*.parquet")))
    for method, rows in table.groupby("method"):
        budgets = rows["budget"].astype(float).to_numpy()
        points = operating_points(curves[curves["method"].eq(method)], budgets)
        assert points["n"].tolist() == rows["n"].tolist(), method
        for mine, its in (("accuracy", "mean"), ("std", "std"), ("relative_cost", "relative_cost")):
            np.testing.assert_allclose(points[mine], rows[its], atol=1e-6, err_msg=f"{method}, {mine}")


def test_the_slider_has_the_study_s_own_budgets():
    budgets = slider_budgets([0.333, 1.5, "max"])
    assert {0.02, 0.333, 0.5, 1.5} <= set(budgets.tolist())
    assert (np.diff(budgets) > 0).all()
    assert slider_budgets(["max"]).max() == pytest.approx(1.1)


def test_the_fastest_runtime_counts_and_the_most_threads():
    rows = [
        (1, "ztw", "0.5", 100.0, 2),
        (1, "ztw", "0.5", 250.0, 2),
        (1, "ztw", "0.5", 999.0, 1),
        (1, "resnet8", "-", 500.0, 2),
    ]
    times = pd.DataFrame(rows, columns=["batch_size", "method", "budget", "images_per_s", "threads"])
    assert fastest_times(times) == {"1": {"ztw": {"0.5": 4.0}, "resnet8": {"": 2.0}}}
