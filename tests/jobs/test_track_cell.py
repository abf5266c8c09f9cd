"""The job that logs a cell: its figure is drawn here, kept beside the runs' ids and with the cell's own run."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from metrics_by_hand import at_budget
from mlflow import MlflowClient

from ztw.evaluation.names import BACKBONE
from ztw.files import read_json, write_json
from ztw.jobs.start_tracking import start_tracking
from ztw.jobs.track_cell import CellFacts, track_cell
from ztw.reporting.results import from_files, from_runs
from ztw.study.layout import Cell

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own dependencies warn


def track(tmp_path, tracking: str) -> dict[str, Any]:
    """Log a cell of one method; returns what is written of its runs."""
    cell, folder = Cell("digits", "resnet8", 0), tmp_path / "cell"
    identity = {"dataset": "digits", "arch": "resnet8", "seed": 0}
    rows = [
        {"protocol": "", "budget": "", "exit": 1, "metric": name, "value": 0.5}
        for name in ("accuracy", "relative_cost")
    ]
    rows += at_budget("0.5", 0.75, 0.5) + at_budget("0.5", 0.9, 0.5, "paper") + at_budget("0.1", None, None)
    write_json(folder / "sdn.json", {**identity, "method": "sdn", "metrics": rows})
    write_json(folder / "backbone.json", identity)
    row = {"budget": None, "median_ms": 2.0, "images_per_s": 10.0, "runtime": "pytorch", "batch_size": 1}
    timed = [{**row, "method": BACKBONE}, {**row, "method": "sdn", "budget": 0.5, "images_per_s": 16.0}]
    write_json(folder / "latency.json", {**identity, "rows": timed})
    curve = {"method": "sdn", "seed": 0, "split": "test"}
    curve |= {"parameter": [0.5], "relative_cost": [0.5], "accuracy": [0.8]}
    pd.DataFrame(curve).to_parquet(folder / "sdn.parquet")
    start_tracking(tracking, "study", tmp_path / "tracking.json", print)
    track_cell(
        cell,
        "study",
        (["sdn"], {"sdn": "frozen"}),
        "held-out",
        CellFacts(
            str(tmp_path / "tracking.json"),
            str(folder / "backbone.json"),
            [],
            [],
            [str(folder / "sdn.json")],
            [str(folder / "sdn.parquet")],
            times=str(folder / "latency.json"),
        ),
        str(folder / "runs.json"),
        print,
    )
    return read_json(folder / "runs.json")


def test_a_cell_is_logged_with_its_figure(tmp_path):
    runs, folder = track(tmp_path, "sqlite")["runs"], tmp_path / "cell"
    for kind in ("png", "pdf"):
        assert (folder / f"accuracy_cost.{kind}").stat().st_size > 1000
    client = MlflowClient(read_json(tmp_path / "tracking.json")["uri"])

    def kept(run: str) -> set[str]:
        return {artifact.path for artifact in client.list_artifacts(run)}

    assert kept(runs["cell"]["digits/resnet8/seed0"]) == {"accuracy_cost.png", "latency.json"}
    assert kept(runs["method"]["sdn"]) == {"sdn.json", "sdn.parquet"}
    headlines = {"accuracy_at_0.5": 0.75, "relative_time_at_0.5": 0.625}
    own = client.get_run(runs["method"]["sdn"]).data.metrics
    assert {name: value for name, value in own.items() if "/" not in name} == headlines
    of_cell = client.get_run(runs["cell"]["digits/resnet8/seed0"]).data.metrics
    assert of_cell == {f"sdn/{name}": value for name, value in headlines.items()}


def test_a_cell_whose_server_is_away_says_so_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    runs = track(tmp_path, "http://127.0.0.1:9")
    away = "the MLflow server http://127.0.0.1:9 is away ([Errno 111] Connection refused)"
    assert runs == {"dataset": "digits", "arch": "resnet8", "seed": 0, "undelivered": away}
    assert (tmp_path / "cell/accuracy_cost.png").exists()
    files = [str(tmp_path / name) for name in ("tracking.json", "cell/runs.json", "cell/sdn.json")]
    assert from_runs(files[0], [files[1]], [files[2]]).equals(from_files([files[2]]))
