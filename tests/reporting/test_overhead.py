"""Test the cost of the pipeline, from hand-written benchmark files and logs."""

from __future__ import annotations

from pathlib import Path

import pytest

import ztw
from ztw.reporting.overhead import pipeline_table


def job(study: Path, name: str, seconds: float, working: float, start: float, memory: str = "100.5") -> None:
    for kind, text in (
        ("benchmarks", f"s\th:m:s\tmax_rss\n{seconds}\t0:00:00\t{memory}\n"),
        ("logs", f"progress: started\nworked {working:.3f} s, from {start:.3f}\ndone: 0:01\n"),
    ):
        path = study / kind / f"{name}.{'tsv' if kind == 'benchmarks' else 'log'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_table_by_hand(tmp_path):
    job(tmp_path, "train/d-a-seed0", seconds=12, working=10, start=102)
    job(tmp_path, "train/d-torchvision/resnet18-seed0", seconds=13, working=10, start=103, memory="300")
    job(tmp_path, "track_cell/d-a-seed0", seconds=4, working=3, start=114, memory="NA")
    job(tmp_path, "aggregate", seconds=5, working=2, start=118)
    rows = {row["rule"]: row for row in pipeline_table(tmp_path, cores=2).to_dict("records")}
    # from 100 (102 minus 2 s to start) to 120: 40 core-seconds
    assert (rows["train"]["jobs"], rows["train"]["overhead"], rows["train"]["largest_mb"]) == (2, 5, 300)
    assert rows["train"]["share_of_run"] == pytest.approx(5 / 40)
    assert rows["aggregate"]["overhead"] == 3
    assert rows["all"]["overhead"] == 5 + 1 + 3 + 3, "MLflow's own work is overhead, too"
    assert rows["all"]["share_of_run"] == pytest.approx(12 / 40)


def test_a_log_without_a_working_time_is_named(tmp_path):
    job(tmp_path, "train/d-a-seed0", 12, 10, 102)
    (tmp_path / "logs/train/d-a-seed0.log").write_text("nothing\n")
    with pytest.raises(ztw.ZtwError, match="has no working time"):
        pipeline_table(tmp_path, cores=2)
