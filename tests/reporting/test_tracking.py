"""MLflow: what is written, replaced, read back, and what a missing store or run says."""

from __future__ import annotations

import math

import pytest
from mlflow import MlflowClient

import ztw
from ztw.files import write_json
from ztw.reporting.results import from_files, from_runs
from ztw.reporting.tracking import read_metrics, start_store, track_cell

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own dependencies warn

CELL = {"dataset": "digits", "arch": "resnet8", "seed": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return start_store("sqlite", "study", tmp_path_factory.mktemp("study"))


def parts(folder, accuracy: float = 0.9):
    history = [
        {"epoch": epoch, "loss": 1.0 / epoch, "accuracy": 0.5, "lr": 0.1, "seconds": 1.0, "finished": 1e9}
        for epoch in (1, 2)
    ]
    facts = {**CELL, "settings": {"lr": 0.1}, "history": history, "accuracy": {"validation": 0.8}}
    write_json(folder / "backbone.json", facts)
    metrics = {"held-out/accuracy_at_0.5": accuracy, "held-out/accuracy_at_0.25": None}
    write_json(folder / "ztw.json", {**CELL, "method": "ztw", "settings": {"rule": "x"}, "metrics": metrics})
    return {"backbone": [str(folder / "backbone.json")], "method": [str(folder / "ztw.json")]}


def test_a_cell_is_nested_and_replaced(store, tmp_path):
    first = track_cell(store, "study", CELL, parts(tmp_path), {}, "v1")
    second = track_cell(store, "study", CELL, parts(tmp_path, 0.95), {}, "v2")
    client = MlflowClient(store["uri"])
    runs = client.search_runs([store["experiment_id"]])
    assert len(runs) == 3, "the cell, its backbone and its method, the earlier ones gone"
    parent = second["runs"]["cell"]["digits/resnet8/seed0"]
    method = client.get_run(second["runs"]["method"]["ztw"])
    assert method.data.tags["mlflow.parentRunId"] == parent
    wanted = {"study": "study", "dataset": "digits", "arch": "resnet8", "seed": "0", "method": "ztw"}
    assert wanted.items() <= method.data.tags.items()
    assert method.data.tags["code_version"] == "v2"
    backbone = second["runs"]["backbone"]["backbone"]
    loss = client.get_metric_history(backbone, "loss")
    assert [(metric.step, metric.value) for metric in loss] == [(1, 1.0), (2, 0.5)]
    assert client.get_run(backbone).data.params["settings.lr"] == "0.1"
    assert [artifact.path for artifact in client.list_artifacts(backbone)] == ["backbone.json"]
    metrics = read_metrics(store, second["runs"]["method"]["ztw"])
    assert metrics["held-out/accuracy_at_0.5"] == 0.95
    assert math.isnan(metrics["held-out/accuracy_at_0.25"])
    stale = first["runs"]["method"]["ztw"]
    with pytest.raises(ztw.ZtwError, match=f"run {stale} was deleted"):
        read_metrics(store, stale)


def test_other_cells_and_foreign_runs_stay(store, tmp_path):
    client = MlflowClient(store["uri"])
    foreign = client.create_run(store["experiment_id"]).info.run_id
    other = {**CELL, "seed": 7}
    kept = track_cell(store, "study", other, parts(tmp_path), {}, "v")
    track_cell(store, "study", CELL, parts(tmp_path), {}, "v")
    for run in (foreign, kept["runs"]["method"]["ztw"]):
        assert client.get_run(run).info.lifecycle_stage == "active"


def test_tables_read_the_named_runs_only(store, tmp_path):
    runs = track_cell(store, "study", CELL, parts(tmp_path, 0.7), {}, "v")
    write_json(tmp_path / "tracking.json", store)
    write_json(tmp_path / "runs.json", runs)
    (found,) = from_runs(str(tmp_path / "tracking.json"), [str(tmp_path / "runs.json")], ["ztw"])
    (same,) = from_files([str(tmp_path / "ztw.json")])
    assert found["metrics"]["held-out/accuracy_at_0.5"] == same["metrics"]["held-out/accuracy_at_0.5"] == 0.7
    assert found.keys() == same.keys()
    with pytest.raises(ztw.ZtwError, match="names no run of sdn"):
        from_runs(str(tmp_path / "tracking.json"), [str(tmp_path / "runs.json")], ["sdn"])
    runs["runs"]["method"]["ztw"] = "0" * 32
    write_json(tmp_path / "runs.json", runs)
    with pytest.raises(ztw.ZtwError, match=f"run {'0' * 32} is not in"):
        from_runs(str(tmp_path / "tracking.json"), [str(tmp_path / "runs.json")], ["ztw"])


def test_an_unreachable_store(tmp_path):
    with pytest.raises(
        ztw.ZtwError, match=r"store 'http://127.0.0.1:9' cannot be used .*set tracking to sqlite"
    ):
        start_store("http://127.0.0.1:9", "study", tmp_path)
    (tmp_path / "mlflow.db").write_text("this is no database " * 100)
    with pytest.raises(ztw.ZtwError, match=r"store 'sqlite:.*mlflow.db' cannot be used"):
        start_store("sqlite", "study", tmp_path)


def test_starting_twice_keeps_the_experiment(store, tmp_path):
    folder = store["uri"].removeprefix("sqlite:///").removesuffix("/mlflow.db")
    assert start_store("sqlite", "study", folder) == store
