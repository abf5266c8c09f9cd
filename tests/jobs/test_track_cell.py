"""Test the job that logs a cell: it draws a figure, and logs it with the cell's run."""

from __future__ import annotations

import shutil
from typing import Any

import pandas as pd
import pytest
from metrics_by_hand import at_budget
from mlflow import MlflowClient

from ztw.evaluation.names import BACKBONE
from ztw.files import read_json, write_json
from ztw.jobs.job import Job
from ztw.jobs.start_tracking import StartTrackingSettings, start_tracking
from ztw.jobs.track_cell import TrackCellSettings, track_cell
from ztw.reporting.results import from_files, from_runs
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.settings import EvaluationSettings

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own dependencies warn

CELL = Cell("digits", "resnet8", 0)
IDENTITY = {"dataset": "digits", "arch": "resnet8", "seed": 0}


def write_results(layout: Layout, from_logits: bool = False) -> None:
    """The files of a cell of one method."""
    rows = [
        {"protocol": "", "budget": "", "exit": 1, "metric": name, "value": 0.5}
        for name in ("accuracy", "relative_cost")
    ]
    rows += at_budget("0.5", 0.75, 0.5) + at_budget("0.5", 0.9, 0.5, "paper") + at_budget("0.1", None, None)
    write_json(layout.metrics(CELL, "sdn"), {**IDENTITY, "method": "sdn", "metrics": rows})
    if from_logits:
        origin = {"source": "logits", "file": "mine.npz", "note": "a paper"}
        described = {"ics": "mine", "origin": origin, "base_cost": 8e6, "cost": [2e6, 1e7]}
        write_json(metadata(layout.predictions(CELL, "mine", "test")), described)
    else:
        write_json(metadata(layout.backbone(CELL)), IDENTITY)
    row = {
        "budget": None,
        "median_ms": 2.0,
        "images_per_s": 10.0,
        "runtime": "pytorch",
        "batch_size": 1,
        "threads": 2,
    }
    timed = [{**row, "method": BACKBONE}, {**row, "method": "sdn", "budget": 0.5, "images_per_s": 16.0}]
    write_json(layout.latency(CELL), {**IDENTITY, "rows": timed})
    curve = {"method": "sdn", "seed": 0, "split": "test"}
    curve |= {"parameter": [0.5], "relative_cost": [0.5], "accuracy": [0.8]}
    layout.curves(CELL, "sdn").parent.mkdir(parents=True)
    pd.DataFrame(curve).to_parquet(layout.curves(CELL, "sdn"))


def logged(layout: Layout, sets: tuple[str, ...] = ()) -> dict[str, Any]:
    """Log the cell, from sets of logits if there are any; returns what is written of its runs."""
    families = {"sdn": "frozen"}
    settings = TrackCellSettings(
        ("sdn",), sets, bool(sets), (), families, "held-out", timed=True, models=False
    )
    track_cell(Job(layout), CELL, settings)
    return read_json(layout.runs(CELL))


def tracking_settings(tracking: str) -> StartTrackingSettings:
    return StartTrackingSettings(tracking, "make reproduce", EvaluationSettings(), timed=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Layout:
    """A study whose store has been started."""
    layout = Layout(tmp_path_factory.mktemp("tracked") / "study")
    start_tracking(Job(layout), tracking_settings("sqlite"))
    return layout


def test_sets_of_logits_are_runs_and_there_is_no_backbone(store, tmp_path):
    layout = Layout(tmp_path / "study")
    write_results(layout, from_logits=True)
    shutil.copy(store.store, layout.store)
    runs = logged(layout, ("mine",))["runs"]
    assert {kind: list(of_kind) for kind, of_kind in runs.items()} == {
        "cell": ["digits/resnet8/seed0"],
        "backbone": [],
        "ics": ["ics mine"],
        "ensemble": [],
        "method": ["sdn"],
    }
    client = MlflowClient(read_json(store.store)["uri"])
    params = client.get_run(runs["ics"]["ics mine"]).data.params
    assert (params["origin.file"], params["origin.note"], params["base_cost"]) == (
        "mine.npz",
        "a paper",
        "8000000.0",
    )


def test_a_cell_is_logged_with_its_figure(store):
    layout = store
    write_results(layout)
    runs = logged(layout)["runs"]
    for kind in ("png", "pdf"):
        assert layout.cell_figure(CELL, kind).stat().st_size > 1000
    client = MlflowClient(read_json(layout.store)["uri"])

    def kept(run: str) -> set[str]:
        return {artifact.path for artifact in client.list_artifacts(run)}

    assert kept(runs["cell"]["digits/resnet8/seed0"]) == {"accuracy_cost.png", "latency.json"}
    assert kept(runs["method"]["sdn"]) == {"sdn.json", "sdn.parquet"}
    headlines = {"at_0.5/accuracy": 0.75, "at_0.5/relative_time": 0.625}
    own = client.get_run(runs["method"]["sdn"]).data.metrics
    short = {name: value for name, value in own.items() if name.startswith("at_")}
    assert short == headlines
    of_cell = client.get_run(runs["cell"]["digits/resnet8/seed0"]).data.metrics
    assert of_cell == {f"sdn/{name}": value for name, value in headlines.items()}


def test_a_cell_whose_server_is_away_says_so_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    layout = Layout(tmp_path / "study")
    write_results(layout)
    start_tracking(Job(layout), tracking_settings("http://127.0.0.1:9"))
    away = "the MLflow server http://127.0.0.1:9 does not answer ([Errno 111] Connection refused)"
    assert logged(layout) == {**IDENTITY, "undelivered": away}
    assert layout.cell_figure(CELL).exists()
    files = [layout.metrics(CELL, "sdn")]
    metrics, lacking = from_runs(layout.store, files, lambda _: None)
    assert metrics.equals(from_files(files))
    assert not lacking
