"""The table of measured times: how they stand beside accuracy and cost."""

from __future__ import annotations

import math

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
    metrics = {"held-out/accuracy_at_0.5": 0.9, "held-out/relative_cost_at_0.5": 0.49}
    metrics |= {"backbone/accuracy": 0.93}
    results = [
        {"dataset": "d", "arch": "a", "seed": seed, "method": "sdn", "metrics": metrics} for seed in (0, 1)
    ]
    table = latency_table([str(tmp_path / "l.json")], results)
    assert [r["relative_time"] for r in table] == [1.0, 0.625, 1.25]
    assert [r["accuracy"] for r in table][:2] == [0.93, 0.9]
    assert [r["relative_cost"] for r in table][:2] == [1.0, 0.49]
    assert math.isnan(table[2]["accuracy"]), "no such budget in the results"
    write_latency(table, str(tmp_path / "l.csv"), str(tmp_path / "l.md"))
    back = read_latency(tmp_path / "l.csv", "d", "a")
    assert [r["relative_time"] for r in back] == [1.0, 0.625, 1.25]
    text = (tmp_path / "l.md").read_text()
    assert "| sdn | 50 % | 90.0 % | 49% | 62% | 1.00 | 2.00 | 160 |" in text
