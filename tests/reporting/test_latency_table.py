"""Test the table of measured times, with accuracy and cost of the same seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from metrics_by_hand import at_budget, metric, result, results

from ztw.evaluation.names import BACKBONE
from ztw.files import read_json, write_json
from ztw.reporting.latency_table import (
    latency_table,
    left_out,
    read_latency,
    shortest_times,
    write_latency,
)


def row(
    method: str,
    budget: float | str | None,
    speed: float,
    runtime: str = "pytorch",
    size: int = 1,
    median: float = 1.0,
) -> dict:
    times = {"median_ms": median, "p95_ms": 2.0, "images_per_s": speed, "differs": 0.0}
    where = {"device": "cpu", "precision": "fp32", "threads": 2}
    facts = {"method": method, "budget": budget, "runtime": runtime, "batch_size": size}
    return {**facts, **times, **where}


def written(tmp_path, rows: list[dict]) -> str:
    write_json(tmp_path / "l.json", {"dataset": "d", "arch": "a", "seed": 0, "rows": rows})
    return str(tmp_path / "l.json")


def test_times_stand_beside_accuracy_and_cost(tmp_path):
    rows = [row(BACKBONE, None, 100.0), row("sdn", 0.5, 160.0), row("sdn", 1.0, 80.0)]
    known = [
        *at_budget("0.5", 0.9, 0.49),
        *at_budget("0.5", 0.1, 0.1, "paper"),
        metric("backbone_accuracy", 0.93),
    ]
    found = results(result(known), result(at_budget("0.5", 0.2, 0.2), seed=1))
    table = latency_table([written(tmp_path, rows)], found)
    assert table["relative_time"].tolist() == [1.0, 0.625, 1.25]
    assert table["accuracy"].tolist()[:2] == [0.93, 0.9]
    assert table["relative_cost"].tolist()[:2] == [1.0, 0.49]
    assert math.isnan(table["accuracy"][2]), "no such budget in the results"
    write_latency(table, {}, str(tmp_path / "l.csv"), str(tmp_path / "l.md"))
    back = read_latency(tmp_path / "l.csv", "d", "a")
    assert back["relative_time"].tolist() == [1.0, 0.625, 1.25]
    assert back["budget"].tolist() == ["-", "0.5", "1.0"]
    assert math.isnan(back["accuracy"][2])
    text = Path(tmp_path / "l.md").read_text()
    caption, title, *lines = [line for line in text.splitlines() if line]
    assert caption.startswith("**Test accuracy in %, and in brackets the measured time")
    assert title == (
        "**a on d, pytorch in fp32, batch size 1, 2 threads of cpu; 100 %: 100 images/s (backbone alone in pytorch)**"
    )
    assert lines == [
        "| method | whole network | 50 % | 100 % | differs |",
        "|---|---:|---:|---:|---:|",
        f"| {BACKBONE} | 93.0 (100 %) |  |  | 0 % |",
        "| sdn |  | 90.0 (62 %) | - (125 %) | 0 % |",
    ]


def test_a_row_in_int8_says_so_and_differs_from_nothing(tmp_path):
    rows = [row(BACKBONE, None, 100.0), row(BACKBONE, None, 200.0, "onnxruntime", median=0.5)]
    rows.append({**row("small", None, 400.0, "onnxruntime"), "precision": "int8", "differs": None})
    table = latency_table([written(tmp_path, rows)], results(result([])))
    write_latency(table, {}, str(tmp_path / "l.csv"), str(tmp_path / "l.md"))
    text = Path(tmp_path / "l.md").read_text()
    assert [line.split(", ")[1] for line in text.splitlines() if line.startswith("**a on d")] == [
        *("pytorch in fp32", "onnxruntime in fp32", "onnxruntime in int8"),
    ]
    assert text.splitlines()[-1] == "| small | - (50 %) | - |", "a table without budgets"
    assert math.isnan(read_latency(tmp_path / "l.csv", "d", "a")["differs"].iloc[-1])


def test_file_and_memory_stand_once_in_the_row_of_a_method(tmp_path):
    sizes = {"file_mb": 1.25, "peak_mb": 20.0}
    rows = [row("sdn", budget, 160.0, "onnxruntime") | sizes for budget in (0.5, 1.0)]
    rows[1]["differs"] = 0.05
    table = latency_table([written(tmp_path, [row(BACKBONE, None, 100.0), *rows])], result([]))
    write_latency(table, {}, str(tmp_path / "l.csv"), str(tmp_path / "l.md"))
    text = Path(tmp_path / "l.md").read_text()
    assert "| method | 50 % | 100 % | differs | file (MB) | memory (MB) |" in text
    assert text.splitlines()[-1] == "| sdn | - (62 %) | - (62 %) | 5 % | 1.2 | 20.0 |"


def test_a_static_network_has_no_budget(tmp_path):
    rows = [row(BACKBONE, None, 100.0), row("resnet8", None, 400.0)]
    exits = [metric("accuracy", 0.8, exit=1), metric("relative_cost", 0.3, exit=1)]
    table = latency_table([written(tmp_path, rows)], results(result(exits, "resnet8")))
    shown = table[table["method"] == "resnet8"].iloc[0]
    assert (shown["budget"], shown["accuracy"], shown["relative_cost"]) == ("-", 0.8, 0.3)
    assert shown["relative_time"] == 0.25


def test_times_are_relative_to_the_backbone_in_its_fastest_runtime(tmp_path):
    """The smallest median decides, for each batch size. Static networks have normal rows."""
    onnx = "onnxruntime"
    rows = [
        row(BACKBONE, None, 100.0, median=3.0),
        row(BACKBONE, None, 400.0, onnx, median=2.0),
        row("smaller", None, 800.0, onnx),
        row("sdn", 0.5, 200.0),
        row("sdn", 0.5, 500.0, onnx),
        row(BACKBONE, None, 300.0, size=8, median=2.0),
        row(BACKBONE, None, 150.0, onnx, size=8, median=3.0),
        row("sdn", 0.5, 600.0, size=8),
        row("sdn", 0.5, 200.0, "another", size=8),
    ]
    table = latency_table([written(tmp_path, rows)], result(at_budget("0.5", 0.9, 0.49)))
    assert table["relative_time"].tolist() == [4.0, 1.0, 0.5, 2.0, 0.8, 1.0, 2.0, 0.5, 1.5]
    assert table["relative_time_in_runtime"].tolist()[:8] == [1.0, 1.0, 0.5, 0.5, 0.8, 1.0, 1.0, 0.5]
    assert math.isnan(table["relative_time_in_runtime"][8]), "the backbone was not timed there"
    write_latency(table, {}, str(tmp_path / "l.csv"), str(tmp_path / "l.md"))
    assert math.isnan(read_latency(tmp_path / "l.csv", "d", "a")["relative_time_in_runtime"][8])
    text = Path(tmp_path / "l.md").read_text()
    assert "| smaller | - (50 %) |  | 0 % |" in text
    assert "| sdn | 90.0 (150 %) | 0 % |" in text, "in the runtime `another`"
    assert text.count("100 %: 400 images/s (backbone alone in onnxruntime)") == 2, "a table for each runtime"
    assert shortest_times(tmp_path / "l.json") == {
        BACKBONE: {"-": 1.0},
        "smaller": {"-": 0.5},
        "sdn": {"0.5": 0.8},
    }


@pytest.mark.parametrize("budget", [1, 1.0, "max"])
def test_a_budget_is_found_as_the_study_writes_it(tmp_path, budget):
    rows = [row(BACKBONE, None, 100.0), row("sdn", budget, 50.0)]
    table = latency_table([written(tmp_path, rows)], result(at_budget(str(budget), 0.9, 0.5)))
    assert table["accuracy"][1] == 0.9
    assert table["relative_cost"].tolist() == [1.0, 0.5], "the backbone's own cost, its accuracy unknown"


def beside(method: str, *rows: dict) -> list[dict]:
    """Return rows that were measured together with a method."""
    return [{**row, "beside": method} for row in rows]


def test_a_time_is_relative_to_the_backbone_that_was_timed_beside_it(tmp_path):
    """The machine was half as fast for the second method. The backbone's row is the median over the methods."""
    onnx = "onnxruntime"
    rows = [
        *beside(
            "sdn",
            row(BACKBONE, None, 100.0, median=4.0),
            row(BACKBONE, None, 200.0, onnx, median=2.0),
            row("sdn", 0.5, 400.0, onnx),
        ),
        *beside(
            "ztw",
            row(BACKBONE, None, 50.0, median=8.0),
            row(BACKBONE, None, 100.0, onnx, median=4.0),
            row("ztw", 0.5, 200.0, onnx),
        ),
    ]
    table = latency_table([written(tmp_path, rows)], result(at_budget("0.5", 0.9, 0.49)))
    assert table["method"].tolist() == [BACKBONE, BACKBONE, "sdn", "ztw"]
    assert table["runtime"].tolist() == ["pytorch", onnx, onnx, onnx]
    assert table["relative_time"].tolist() == [2.0, 1.0, 0.5, 0.5]
    assert table["relative_time_in_runtime"].tolist() == [1.0, 1.0, 0.5, 0.5]
    assert table["images_per_s"].tolist() == [75.0, 150.0, 400.0, 200.0]
    assert table["median_ms"].tolist()[:2] == [6.0, 3.0]
    assert shortest_times(tmp_path / "l.json") == {
        BACKBONE: {"-": 1.0},
        "sdn": {"0.5": 0.5},
        "ztw": {"0.5": 0.5},
    }


def test_the_table_says_why_a_row_is_missing(tmp_path):
    """Methods with the same reason are in one line. A runtime may be missing completely."""
    file = written(tmp_path, [row(BACKBONE, None, 100.0), row("sdn", 0.5, 50.0)])
    missing = [
        {"method": method, "runtime": "onnxruntime", "reason": reason}
        for method, reason in (("sdn", "too deep"), ("ztw", "too deep"), (None, "the study computes on cuda"))
    ]
    facts = read_json(file)
    write_json(file, {**facts, "left_out": missing})
    table = latency_table([file], result(at_budget("0.5", 0.9, 0.49)))
    write_latency(table, left_out([file]), str(tmp_path / "l.csv"), str(tmp_path / "l.md"))
    end = (tmp_path / "l.md").read_text().split("\n\n")[-1]
    assert end.splitlines() == [
        "Not timed in onnxruntime: sdn, ztw (too deep).",
        "Not timed in onnxruntime: all (the study computes on cuda).",
    ]
    write_json(file, facts)
    assert left_out([file]) == {}, "a file of an earlier version says nothing of it"
