"""Measured time: what is timed, and how it stands beside accuracy and cost."""

from __future__ import annotations

import math
import time

import pytest
import torch

from ztw.data.decoded import ImageSet
from ztw.evaluation.timing import BACKBONE, REPEATS, take_batches, time_in_turn
from ztw.files import write_json
from ztw.reporting.latency_table import latency_table, read_latency, write_latency

CPU = torch.device("cpu")


def test_every_batch_is_timed_in_turn_after_a_warm_up():
    called = []

    def slow(batch: torch.Tensor) -> None:
        called.append("slow")
        hiccup = len(called) == 4  # only once, so that it does not count
        time.sleep(0.05 if hiccup else 0.02 if batch.max() else 0.002)

    def fast(batch: torch.Tensor) -> None:
        called.append("fast")

    batches = [torch.zeros(4, 1)] * 5 + [torch.ones(4, 1)]
    found, other = time_in_turn([slow, fast], batches, CPU)
    assert called == (["slow"] * (2 + 6) + ["fast"] * (2 + 6)) * REPEATS, "two to warm up, six timed"
    assert 1.5 < found["median_ms"] < 15
    assert 15 < found["p95_ms"] < 40, "a batch that is slow each time counts, a hiccup does not"
    assert found["images_per_s"] < 24 / 0.03 < other["images_per_s"]


@pytest.mark.parametrize(("size", "images", "count"), [(1, 7, 7), (4, 8, 5), (16, 8, 5)])
def test_batches_to_time_are_full_and_at_least_five(size, images, count):
    data = ImageSet(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.zeros(20).long(), 2, (0.0,), (1.0,))
    batches = take_batches(data, size, images, CPU)
    assert len(batches) == count
    assert all(len(batch) == size for batch in batches)


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
