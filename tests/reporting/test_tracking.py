"""MLflow: what is written, replaced, read back, and what a missing store or run says."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest
import torch
from conftest import small_network
from metrics_by_hand import at_budget, metric
from mlflow import MlflowClient

import ztw
from ztw.evaluation.network_file import Weights, write_network
from ztw.files import read_json, write_json
from ztw.reporting.mlflow_names import metric_name
from ztw.reporting.results import from_files, from_runs
from ztw.reporting.sqlite_store import put_aside
from ztw.reporting.tracking import (
    CellResults,
    ServerAwayError,
    log_cell,
    open_store,
    read_values,
    start_store,
)
from ztw.study.layout import Cell

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own dependencies warn

CELL = Cell("digits", "resnet8", 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return start_store("sqlite", "study", tmp_path_factory.mktemp("study"))


def parts(folder, accuracy: float = 0.9):
    history = [
        {"epoch": epoch, "loss": 1.0 / epoch, "accuracy": 0.5, "lr": 0.1, "seconds": 1.0, "finished": 1e9}
        for epoch in (1, 2)
    ]
    facts = {
        **dataclasses.asdict(CELL),
        "settings": {"lr": 0.1},
        "history": history,
        "accuracy": {"validation": 0.8},
    }
    write_json(folder / "backbone.json", facts)
    rows = [*at_budget("0.5", accuracy, 0.4), *at_budget("0.25", None, None), metric("ece", 0.1, exit=1)]
    method = {**dataclasses.asdict(CELL), "method": "ztw", "settings": {"rule": "x"}, "metrics": rows}
    write_json(folder / "ztw.json", method)
    return {"backbone": [str(folder / "backbone.json")], "method": [str(folder / "ztw.json")]}


def experiment(store) -> str:
    found = MlflowClient(store["uri"]).get_experiment_by_name(store["experiment"])
    assert found is not None
    return found.experiment_id


def values(store, run: str, rows: list) -> list[float]:
    return read_values(open_store(store)[0], store["uri"], run, rows)


def log(store, folder, accuracy: float = 0.9, cell: Cell = CELL, version: str = "v"):
    return log_cell(store, CellResults(cell, "study", version, parts(folder, accuracy), {}))


def test_a_cell_is_nested_and_replaced(store, tmp_path):
    first = log(store, tmp_path, version="v1")
    second = log(store, tmp_path, 0.95, version="v2")
    client = MlflowClient(store["uri"])
    runs = client.search_runs([experiment(store)])
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
    assert method.data.metrics["held-out/accuracy_at_0.5"] == 0.95
    assert method.data.metrics["accuracy_at_0.5"] == 0.95, "the headline; infeasible budgets have none"
    assert client.get_run(parent).data.metrics == {"ztw/accuracy_at_0.5": 0.95}
    assert math.isnan(method.data.metrics["held-out/accuracy_at_0.25"])
    stale = first["runs"]["method"]["ztw"]
    with pytest.raises(ztw.ZtwError, match=f"run {stale} was deleted"):
        values(store, stale, [])


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (metric("accuracy", 1, protocol="held-out", budget="0.25"), "held-out/accuracy_at_0.25"),
        (metric("ece_scaled", 1, protocol="paper", budget="max"), "paper/ece_scaled_at_max"),
        (metric("exit_fraction", 1, protocol="paper", budget="1.0", exit=2), "paper/exit_fraction_2_at_1.0"),
        (metric("loss_at_allowed_loss", 1, protocol="p", budget="0.01"), "p/accuracy_loss_allowed_0.01"),
        (
            metric("relative_cost_at_allowed_loss", 1, protocol="p", budget="0.01"),
            "p/relative_cost_allowed_0.01",
        ),
        (metric("accuracy", 1, exit=12), "exit_12/accuracy"),
        (metric("overthinking", 1), "overthinking"),
        (metric("backbone_accuracy", 1), "backbone/accuracy"),
        (metric("backbone_macs", 1), "backbone/macs"),
    ],
)
def test_names_in_mlflow(row, name):
    assert metric_name(row) == name


def test_a_run_with_many_metrics_is_logged_whole(store, tmp_path):
    """MLflow takes at most 1000 metrics at a time."""
    facts = read_json(parts(tmp_path)["method"][0])
    rows = [metric("ece", exit / 2000, exit=exit) for exit in range(1, 2001)]
    write_json(tmp_path / "ztw.json", {**facts, "metrics": rows})
    files = {"method": [str(tmp_path / "ztw.json")]}
    runs = log_cell(store, CellResults(Cell("d", "a", 1), "study", "v", files, {}))
    assert values(store, runs["runs"]["method"]["ztw"], rows) == [row["value"] for row in rows]


def test_other_cells_and_foreign_runs_stay(store, tmp_path):
    client = MlflowClient(store["uri"])
    foreign = client.create_run(experiment(store)).info.run_id
    kept = log(store, tmp_path, cell=Cell("digits", "resnet8", 7))
    log(store, tmp_path)
    for run in (foreign, kept["runs"]["method"]["ztw"]):
        assert client.get_run(run).info.lifecycle_stage == "active"


def test_tables_read_the_named_runs_only(store, tmp_path):
    runs = log(store, tmp_path, 0.7)
    method, names = tmp_path / "ztw.json", [str(tmp_path / name) for name in ("tracking.json", "runs.json")]
    write_json(names[0], store)
    write_json(names[1], runs)
    facts = read_json(method)
    found = from_runs(names[0], [names[1]], [str(method)])
    assert found["value"].tolist()[:2] == [0.7, 0.4]
    assert found.equals(from_files([str(method)]))
    other = [{**row, "value": 0.0} for row in facts["metrics"]]
    write_json(method, {**facts, "metrics": other})
    with pytest.raises(
        ztw.ZtwError, match=r"of ztw in .* says accuracy = 0.7, the file of the cell 0.0; delete"
    ):
        from_runs(names[0], [names[1]], [str(method)])
    write_json(method, {**facts, "metrics": [metric("brier", 0.5)]})
    with pytest.raises(ztw.ZtwError, match="has no metric 'brier'"):
        from_runs(names[0], [names[1]], [str(method)])
    write_json(method, {**facts, "method": "sdn"})
    with pytest.raises(ztw.ZtwError, match=r"runs.json: names no run of sdn"):
        from_runs(names[0], [names[1]], [str(method)])
    runs["runs"]["method"]["sdn"] = "0" * 32
    write_json(names[1], runs)
    with pytest.raises(ztw.ZtwError, match=f"run {'0' * 32} is not in"):
        from_runs(names[0], [names[1]], [str(method)])


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("http://host:no-port", "start it, or set tracking to sqlite or none"),
        ("postgresql+nodriver://somebody@127.0.0.1/x", "install the Python package"),
        ("mysql+nodriver://127.0.0.1/x", "install the Python package"),
        ("redis://127.0.0.1", "give sqlite, none, or the http address of a tracking server"),
    ],
)
def test_a_store_that_cannot_be_is_told_by_its_kind(tmp_path, uri, hint):
    with pytest.raises(ztw.ZtwError, match=f"cannot be used .*{hint}") as caught:
        start_store(uri, "study", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_store_in_a_file_is_never_to_be_started(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database " * 100)
    store = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "study", "owner": "local"}
    with pytest.raises(ztw.ZtwError, match=r"close what else uses .*mlflow.db, or delete it") as caught:
        open_store(store)
    assert "start it" not in str(caught.value)


class Answering(BaseHTTPRequestHandler):
    """A server that answers every request with one status, after a while."""

    status, seconds, asked, body = 503, 0.0, "", ""

    def do_GET(self):
        type(self).asked = self.headers.get("Authorization", "")
        time.sleep(self.seconds)
        with contextlib.suppress(OSError):
            self.send_response(self.status)
            self.end_headers()
            self.wfile.write(self.body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """host:port of an Answering server."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "seconds", "reason"),
    [(503, 0, "too many 503 error responses"), (500, 0, "500"), (200, 2, "timed out"), (None, 0, "refused")],
)
def test_a_server_that_is_away_is_told_and_the_study_goes_on(
    tmp_path, server, monkeypatch, status, seconds, reason
):
    monkeypatch.setattr(Answering, "status", status)
    monkeypatch.setattr(Answering, "seconds", seconds)
    monkeypatch.setattr("ztw.reporting.tracking.ANSWERS_WITHIN", 1)
    uri = f"http://{server}" if status else "http://127.0.0.1:9"
    said: list[str] = []
    store = start_store(uri, "study", tmp_path, said.append)
    assert len(said) == 1
    assert said[0].startswith(f"the MLflow server {uri} is away (")
    assert reason in said[0]
    with pytest.raises(ServerAwayError, match="is away"):
        log(store, tmp_path)
    names = [str(tmp_path / name) for name in ("tracking.json", "runs.json", "ztw.json")]
    write_json(names[0], store)
    write_json(names[1], {**dataclasses.asdict(CELL), "runs": {"method": {"ztw": "0" * 32}}})
    said.clear()
    found = from_runs(names[0], [names[1]], [names[2]], said.append)
    assert found.equals(from_files([names[2]]))
    assert len(said) == 1
    assert said[0].endswith("the tables are made of the cells' files")


def test_a_server_that_refuses_who_asks_is_an_error(tmp_path, server, monkeypatch):
    monkeypatch.setattr(Answering, "status", 401)
    with pytest.raises(ztw.ZtwError, match=r"cannot be used .*401") as caught:
        start_store(f"http://{server}", "study", tmp_path)
    assert not isinstance(caught.value, ServerAwayError)


INVALID_HOST = "Invalid Host header - possible DNS rebinding attack detected"  # MLflow's own text
DENIED = '{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'
ALLOWED = r"name {server} in the server's MLFLOW_SERVER_ALLOWED_HOSTS"
LOGIN = "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


@pytest.mark.parametrize(
    ("status", "body", "hint"),
    [
        (403, INVALID_HOST, ALLOWED),
        (403, "<html><h1>403 Forbidden</h1></html>", f"{ALLOWED}, or {LOGIN}"),
        (403, DENIED, f"{ALLOWED}, or {LOGIN}"),
        (401, "", LOGIN),
    ],
)
def test_a_server_that_refuses_is_told_with_what_it_wants(tmp_path, server, monkeypatch, status, body, hint):
    monkeypatch.setattr(Answering, "status", status)
    monkeypatch.setattr(Answering, "body", body)
    with pytest.raises(ztw.ZtwError) as caught:
        start_store(f"http://{server}", "study", tmp_path)
    assert str(caught.value).endswith(f"; {hint.format(server=server)}")


@pytest.mark.parametrize("status", [401, 503])
def test_a_password_reaches_the_server_and_nothing_else(tmp_path, server, monkeypatch, status):
    monkeypatch.setattr(Answering, "status", status)
    for name in ("USERNAME", "PASSWORD"):  # set by the code under test: put back afterwards
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    given = f"http://olga:s%40cret@{server}"
    monkeypatch.setenv("ZTW_TRACKING", given)
    said: list[str] = []
    try:
        said.append(str(start_store(given, "study", tmp_path, said.append)))
    except ztw.ZtwError as error:
        said += traceback.format_exception(error)
    assert Answering.asked == f"Basic {base64.b64encode(b'olga:s@cret').decode()}"
    assert server in " ".join(said)
    assert not any(word in " ".join(said) for word in ("olga", "s@cret", "s%40cret"))


def test_a_password_of_a_database_is_not_told(tmp_path, monkeypatch):
    given = "postgresql+nodriver://ann:secret@127.0.0.1/x"
    monkeypatch.setenv("ZTW_TRACKING", given)
    with pytest.raises(ztw.ZtwError, match="install the Python package") as caught:
        start_store(given, "study", tmp_path)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_starting_twice_keeps_the_experiment(store):
    folder = store["uri"].removeprefix("sqlite:///").removesuffix("/mlflow.db")
    before = experiment(store)
    assert start_store("sqlite", "study", folder) == store
    assert experiment(store) == before


def half_made(path) -> None:
    """A store whose making was interrupted: tables without the last migration."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")


@pytest.mark.parametrize(
    "spoil",
    [half_made, lambda path: path.write_text("this is no database " * 100), lambda path: path.touch()],
)
def test_a_store_that_was_never_finished_is_made_again(tmp_path, spoil):
    spoil(tmp_path / "mlflow.db")
    said: list[str] = []
    log(start_store("sqlite", "study", tmp_path, said.append), tmp_path)
    assert len(said) == 1
    assert "was never finished, or is broken: kept as mlflow.db.broken1" in said[0]
    assert (tmp_path / "mlflow.db.broken1").exists()


def test_a_store_that_was_interrupted_late_is_made_again(store, tmp_path):
    """All tables are there, but MLflow was changing them, which it cannot do again."""
    shutil.copyfile(store["uri"].removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        for table in ("latest_metrics", "metrics", "params", "tags", "runs", "webhooks"):
            database.execute(f"DELETE FROM {table}")
        database.execute("DROP TABLE webhooks")  # MLflow goes on from the version where one is missing
        database.execute("UPDATE alembic_version SET version_num = '90e64c465722'")
    said: list[str] = []
    log(start_store("sqlite", "study", tmp_path, said.append), tmp_path)
    assert len(said) == 1
    assert "was never finished" in said[0]


KILLED_WHILE_WRITING = """
import os, signal, sqlite3, sys
store = sqlite3.connect(sys.argv[1])
store.execute("PRAGMA cache_size = 1")
for number in range(3000):
    store.execute("INSERT INTO experiment_tags VALUES (?, ?, 0)", (str(number), "x" * 400))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_write_that_was_killed_costs_no_store(tmp_path):
    """sqlite's journal stays beside the file, and takes back what was half written."""
    store, database = start_store("sqlite", "study", tmp_path), tmp_path / "mlflow.db"
    runs = log(store, tmp_path)
    subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(database)], check=False)
    assert (tmp_path / "mlflow.db-journal").exists()
    said: list[str] = []
    start_store("sqlite", "study", tmp_path, said.append)
    assert said == []
    assert values(store, runs["runs"]["method"]["ztw"], [metric("ece", 0.1, exit=1)]) == [0.1]


def test_a_journal_goes_with_the_store_that_is_put_aside(tmp_path):
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "mlflow.db-journal").write_bytes(b"x")
    assert put_aside(tmp_path / "mlflow.db").name == "mlflow.db.broken1"
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db.broken1", "mlflow.db.broken1-journal"}


def test_an_interrupted_start_leaves_no_half_made_store(tmp_path, monkeypatch):
    class Interrupted(MlflowClient):
        def search_experiments(self, *_, **__):
            raise KeyboardInterrupt

    monkeypatch.setattr("ztw.reporting.tracking.MlflowClient", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_store("sqlite", "study", tmp_path)
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.undo()
    log(start_store("sqlite", "study", tmp_path), tmp_path)


def test_a_deleted_experiment_is_restored_with_its_runs(tmp_path):
    store = start_store("sqlite", "study", tmp_path)
    runs = log(store, tmp_path)
    MlflowClient(store["uri"]).delete_experiment(experiment(store))
    write_json(tmp_path / "tracking.json", store)
    write_json(tmp_path / "runs.json", runs)
    found = from_runs(
        str(tmp_path / "tracking.json"), [str(tmp_path / "runs.json")], [str(tmp_path / "ztw.json")]
    )
    assert found["value"].tolist()[0] == 0.9
    MlflowClient(store["uri"]).delete_experiment(experiment(store))
    said: list[str] = []
    log_cell(store, CellResults(CELL, "study", "v", parts(tmp_path), {}), said.append)
    assert said == ["the experiment study had been deleted in MLflow: restored, with its runs"]


def test_an_experiment_that_was_removed_for_good_is_made_anew(tmp_path):
    """By `mlflow gc`."""
    said: list[str] = []
    store = start_store("sqlite", "study", tmp_path, said.append)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("DELETE FROM experiments WHERE name = 'study'")
    log_cell(store, CellResults(CELL, "study", "v", parts(tmp_path), {}), said.append)
    assert said == ["no experiment study in MLflow (removed, or the server was away at first): made anew"]


def test_a_store_that_is_gone_is_told(tmp_path):
    store = start_store("sqlite", "study", tmp_path)
    (tmp_path / "mlflow.db").unlink()
    with pytest.raises(ztw.ZtwError, match=r"mlflow.db is gone; delete the study's tracking.json"):
        log(store, tmp_path)
    assert not (tmp_path / "mlflow.db").exists(), "opening it would have made an empty one"


@pytest.mark.parametrize("name", ["a%20b", "a%2Fb", "a#b"])
def test_artifacts_stay_in_the_study_whatever_its_path(tmp_path, name):
    """MLflow reads %20 in a plain path as a space."""
    study = tmp_path / name / "study"
    log(start_store("sqlite", "study", study), study)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert list((study / "mlflow-artifacts").rglob("ztw.json"))


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_a_store_has_the_mode_of_any_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        start_store("sqlite", "study", tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", ["elsewhere", "with space and ü%_"])
def test_a_moved_study_keeps_its_artifacts_beside_it(tmp_path, name):
    old, new = tmp_path / "study", tmp_path / name / "study"
    first = log(start_store("sqlite", "study", old), tmp_path)
    new.parent.mkdir()
    old.rename(new)
    said: list[str] = []
    store = {**start_store("sqlite", "study", new, said.append)}
    assert len(said) == 1
    assert "has been moved" in said[0]
    second = log(store, tmp_path, cell=Cell("digits", "resnet8", 1))
    client = MlflowClient(store["uri"])
    for runs in (first, second):
        run = runs["runs"]["method"]["ztw"]
        assert [artifact.path for artifact in client.list_artifacts(run)] == ["ztw.json"]
        assert client.download_artifacts(run, "ztw.json", str(tmp_path)).endswith("ztw.json")
    assert not old.exists(), "nothing is written to the old place"


@pytest.fixture(scope="module")
def served(store, tmp_path_factory):
    """(a network, its rules by budget, the URI of its model)."""
    folder = tmp_path_factory.mktemp("networks")
    network = small_network()
    with torch.no_grad():
        logits = network(torch.randn(200, 1, 10, 10))
    network.ensemble = ztw.fit_ensemble(logits, logits.sum(0).argmax(-1))
    low, high = network.ensemble(logits)[0].exp().amax(-1).quantile(torch.tensor([0.5, 0.9])).tolist()
    ztw.save(network, folder / "whole", progress=False)
    part = Weights(folder / "whole/weights.safetensors")
    facts = read_json(folder / "whole/network.json")
    rules: list = [(0.5, ztw.MaxSoftmax(low)), ("max", ztw.MaxSoftmax(high))]
    write_network(folder / "ztw", facts, [part], rules)  # as a study has it: its weights elsewhere
    results = CellResults(
        Cell("digits", "resnet8", 3), "study", "v", parts(folder), {}, models={"ztw": folder / "ztw"}
    )
    run = log_cell(store, results)["runs"]["method"]["ztw"]
    shutil.rmtree(folder)
    return network, dict(rules), f"runs:/{run}/model"


@pytest.fixture
def in_store(store):
    """MLflow's own functions look for runs there."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store["uri"])
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("in_store")
def test_a_method_s_network_loads_as_a_model_and_answers_as_infer(served, caplog):
    network, rules, uri = served
    model = mlflow.pyfunc.load_model(uri)
    images = torch.randn(40, 1, 10, 10)
    for params, budget in ((None, 0.5), ({"budget": "0.5"}, 0.5), ({"budget": "max"}, "max")):
        found = model.predict(images.numpy(), params=params)
        expected = network.infer(images, rules[budget])
        assert found.columns.tolist() == ["class", "probability", "exit"]
        assert found["exit"].tolist() == (expected.exit_index + 1).tolist()
        assert found["class"].tolist() == expected.logits.argmax(-1).tolist()
        assert found["probability"].tolist() == pytest.approx(
            expected.logits.exp().amax(-1).tolist(), abs=1e-6
        )
        assert found["exit"].nunique() > 1
    with pytest.raises(ztw.ZtwError, match=r"budget '0.3': the network has rules for 0.5, max"):
        model.predict(images.numpy(), params={"budget": "0.3"})
    assert not caplog.records, "nothing is warned of"


@pytest.mark.usefixtures("in_store")
def test_a_model_says_what_it_takes(served):
    *_, uri = served
    model = mlflow.pyfunc.load_model(uri)
    taken, given = model.metadata.get_input_schema(), model.metadata.get_output_schema()
    assert str(taken) == "[Tensor('float32', (-1, 1, 10, 10))]"
    assert given.input_names() == ["class", "probability", "exit"]
    example = model.input_example
    assert example.shape == (1, 1, 10, 10)
    assert len(model.predict(example)) == 1
    with pytest.raises(mlflow.exceptions.MlflowException, match="float64"):
        model.predict(example.astype("float64"))


def test_a_method_without_a_rule_has_no_model(store, tmp_path):
    ztw.save(small_network(), tmp_path / "net", progress=False)
    results = CellResults(
        Cell("digits", "resnet8", 4), "study", "v", parts(tmp_path), {}, models={"ztw": tmp_path / "net"}
    )
    run = log_cell(store, results)["runs"]["method"]["ztw"]
    assert [found.path for found in MlflowClient(store["uri"]).list_artifacts(run)] == ["ztw.json"]
