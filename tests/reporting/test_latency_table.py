"""Measured times stand beside the accuracy and the cost of the same seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from metrics_by_hand import at_budget, metric, result, results

from ztw.evaluation.timing import BACKBONE
from ztw.files import write_json
from ztw.reporting.latency_table import latency_table, read_latency, write_latency


def row(method: str, budget: float | None, speed: float) -> dict:
    times = {"median_ms": 1.0, "p95_ms": 2.0, "images_per_s": speed}
    where = {"device": "cpu", "precision": "fp32", "threads": 2}
    return {"method": method, "budget": budget, "batch_size": 1, **times, **where}


def test_times_stand_beside_accuracy_and_cost(tmp_path):
    rows = [row(BACKBONE, None, 100.0), row("sdn", 0.5, 160.0), row("sdn", 1.0, 80.0)]
    write_json(tmp_path / "l.json", {"dataset": "d", "arch": "a", "seed": 0, "rows": rows})
    known = [
        *at_budget("0.5", 0.9, 0.49),
        *at_budget("0.5", 0.1, 0.1, "paper"),
        metric("backbone_accuracy", 0.93),
    ]
    found = results(result(known), result(at_budget("0.5", 0.2, 0.2), seed=1))
    table = latency_table([str(tmp_path / "l.json")], found)
    assert table["relative_time"].tolist() == [1.0, 0.625, 1.25]
    assert table["accuracy"].tolist()[:2] == [0.93, 0.9]
    assert table["relative_cost"].tolist()[:2] == [1.0, 0.49]
    assert math.isnan(table["accuracy"][2]), "no such budget in the results"
    write_latency(table, str(tmp_path / "l.csv"), str(tmp_path / "l.md"))
    back = read_latency(tmp_path / "l.csv", "d", "a")
    assert back["relative_time"].tolist() == [1.0, 0.625, 1.25]
    assert back["budget"].tolist() == ["-", "0.5", "1.0"]
    assert math.isnan(back["accuracy"][2])
    text = Path(tmp_path / "l.md").read_text()
    assert "| sdn | 50 % | 90.0 % | 49% | 62% | 1.00 | 2.00 | 160 |" in text
    assert f"| {BACKBONE} |  | 93.0 % | 100% | 100% |" in text


@pytest.mark.parametrize("budget", [1, 1.0, "max"])
def test_a_budget_is_found_as_the_study_writes_it(tmp_path, budget):
    rows = [row(BACKBONE, None, 100.0), row("sdn", budget, 50.0)]
    write_json(tmp_path / "l.json", {"dataset": "d", "arch": "a", "seed": 0, "rows": rows})
    table = latency_table([str(tmp_path / "l.json")], result(at_budget(str(budget), 0.9, 0.5)))
    assert table["accuracy"][1] == 0.9
    assert table["relative_cost"].tolist() == [1.0, 0.5], "the backbone's own cost, its accuracy unknown"
