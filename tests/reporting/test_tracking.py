"""Test MLflow: runs are logged, replaced and read; a missing store or run is reported."""

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
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

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
from ztw.reporting.mlflow_view import experiment_tags
from ztw.reporting.results import from_files, from_runs
from ztw.reporting.sqlite_store import prepare
from ztw.reporting.tracking import CellResults, ServerAwayError, log_cell, read_copies, start_store
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
    return {"backbone": [folder / "backbone.json"], "method": [folder / "ztw.json"]}


def experiment(store) -> str:
    found = MlflowClient(store["uri"]).get_experiment_by_name(store["experiment"])
    assert found is not None
    return found.experiment_id


def log(store, folder, accuracy: float = 0.9, cell: Cell = CELL, version: str = "v"):
    return log_cell(store, CellResults(cell, version, parts(folder, accuracy)))


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
    assert method.data.metrics["at_0.5/accuracy"] == 0.95, "the headline; infeasible budgets have none"
    assert client.get_run(parent).data.metrics == {"ztw/at_0.5/accuracy": 0.95}
    assert math.isnan(method.data.metrics["held-out/accuracy_at_0.25"])
    earlier = client.get_run(first["runs"]["method"]["ztw"])
    assert earlier.info.lifecycle_stage == "deleted"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (metric("accuracy", 1, protocol="held-out", budget="0.25"), "held-out/accuracy_at_0.25"),
        (metric("ece_scaled", 1, protocol="paper", budget="max"), "paper/ece_scaled_at_max"),
        (
            metric("exit_fraction", 1, protocol="paper", budget="1.0", exit=2),
            "paper/exit_2/exit_fraction_at_1.0",
        ),
        (metric("loss_at_allowed_loss", 1, protocol="p", budget="0.01"), "p/loss_at_allowed_loss_at_0.01"),
        (
            metric("relative_cost_at_allowed_loss", 1, protocol="p", budget="0.01"),
            "p/relative_cost_at_allowed_loss_at_0.01",
        ),
        (metric("accuracy", 1, exit=12), "exit_12/accuracy"),
        (metric("overthinking", 1), "overthinking"),
        (metric("backbone_accuracy", 1), "backbone_accuracy"),
        (metric("backbone_macs", 1), "backbone_macs"),
    ],
)
def test_names_in_mlflow(row, name):
    assert metric_name(row) == name


def test_a_run_with_many_metrics_is_logged_completely(store, tmp_path):
    """MLflow takes at most 1000 metrics at a time."""
    facts = read_json(parts(tmp_path)["method"][0])
    rows = [metric("ece", exit / 2000, exit=exit) for exit in range(1, 2001)]
    write_json(tmp_path / "ztw.json", {**facts, "metrics": rows})
    results = CellResults(Cell("d", "a", 1), "v", {"method": [tmp_path / "ztw.json"]})
    run = log_cell(store, results)["runs"]["method"]["ztw"]
    logged = MlflowClient(store["uri"]).get_run(run).data.metrics
    assert logged == {metric_name(row): row["value"] for row in rows}


def test_other_cells_and_foreign_runs_stay(store, tmp_path):
    client = MlflowClient(store["uri"])
    foreign = client.create_run(experiment(store)).info.run_id
    kept = log(store, tmp_path, cell=Cell("digits", "resnet8", 7))
    log(store, tmp_path)
    for run in (foreign, kept["runs"]["method"]["ztw"]):
        assert client.get_run(run).info.lifecycle_stage == "active"


@pytest.fixture
def logged(store, tmp_path):
    """A logged method: tracking.json, the metrics file, the id of the run, the run's copy of the file."""
    write_json(tmp_path / "tracking.json", store)
    run = log(store, tmp_path, 0.7)["runs"]["method"]["ztw"]
    place = MlflowClient(store["uri"]).get_run(run).info.artifact_uri
    copy = Path(url2pathname(urlsplit(place).path), "ztw.json")
    return tmp_path / "tracking.json", tmp_path / "ztw.json", run, copy


def test_tables_are_made_from_the_copies_of_the_runs(store, logged, monkeypatch):
    tracking, file, *_ = logged
    said: list[str] = []
    found, lacking = from_runs(tracking, [file], said.append)
    assert (said, lacking) == ([], {})
    assert found["value"].tolist()[:2] == [0.7, 0.4]
    assert found.equals(from_files([file]))
    monkeypatch.setattr("ztw.reporting.results.read_json", lambda path: {str(tracking): store}[str(path)])
    assert from_runs(tracking, [file], said.append)[0].equals(found), "the file itself is not read"


def deleted_run(client, run, copy, file):
    client.delete_run(run)


def deleted_copy(client, run, copy, file):
    copy.unlink()


def edited_copy(client, run, copy, file):
    copy.write_text(copy.read_text().replace("0.7", "0.8"))


def deleted_metric(client, run, copy, file):
    database = client.tracking_uri.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(database)) as tables, tables:
        tables.execute("DELETE FROM latest_metrics WHERE run_uuid = ? AND key = 'exit_1/ece'", [run])


def earlier_results(client, run, copy, file):
    write_json(file, {**read_json(file), "metrics": at_budget("0.5", 0.6, 0.4)})


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (deleted_run, "no run in MLflow has this result"),
        (deleted_copy, "its run {run} in MLflow has no copy of the file"),
        (edited_copy, "the copy in MLflow's run {run} was altered"),
        (deleted_metric, "its run {run} in MLflow has no metric 'exit_1/ece'"),
        (earlier_results, "no run in MLflow has this result"),
    ],
)
def test_what_mlflow_lacks_is_named_and_taken_from_the_file(store, logged, change, wrong):
    tracking, file, run, copy = logged
    change(MlflowClient(store["uri"]), run, copy, file)
    said: list[str] = []
    found, lacking = from_runs(tracking, [file], said.append)
    assert found.equals(from_files([file]))
    assert lacking == {file: f"{file}: {wrong.format(run=run)}"}
    assert said == [f"{lacking[file]}: the tables use the file; the next call logs it again"]


def test_a_file_that_was_altered_makes_no_table(logged):
    tracking, file, *_ = logged
    file.write_text(file.read_text().replace("0.7", "0.8"))
    with pytest.raises(ztw.ZtwError, match=r"ztw\.json: altered since it was written"):
        from_runs(tracking, [file])


def test_an_interrupted_run_is_not_used(store, logged):
    _, file, run, _ = logged
    client = MlflowClient(store["uri"])
    client.create_run(experiment(store), tags=client.get_run(run).data.tags)
    copies, lacking = read_copies(store, [file])
    assert (list(copies), lacking) == ([file], {})


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("http://host:no-port", "start it, or set tracking to sqlite or none"),
        ("postgresql+nodriver://somebody@127.0.0.1/x", "install the Python package"),
        ("mysql+nodriver://127.0.0.1/x", "install the Python package"),
        ("redis://127.0.0.1", "give sqlite, none, or the http address of a tracking server"),
    ],
)
def test_an_impossible_store_gives_a_hint_by_its_kind(tmp_path, uri, hint):
    with pytest.raises(ztw.ZtwError, match=f"cannot be used .*{hint}") as caught:
        start_store(uri, "study", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_sqlite_store_gives_no_hint_to_start_it(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database " * 100)
    store = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "study", "owner": "local"}
    with pytest.raises(ztw.ZtwError, match=r"close other .* use .*mlflow.db, or delete it") as caught:
        read_copies(store, [])
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
    """A running `Answering` server, as host:port."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "seconds", "reason"),
    [(503, 0, "too many 503 error responses"), (500, 0, "500"), (200, 2, "timed out"), (None, 0, "refused")],
)
def test_a_server_that_is_away_is_reported_and_the_study_continues(
    tmp_path, server, monkeypatch, status, seconds, reason
):
    monkeypatch.setattr(Answering, "status", status)
    monkeypatch.setattr(Answering, "seconds", seconds)
    monkeypatch.setattr("ztw.reporting.tracking.ANSWERS_WITHIN", 1)
    uri = f"http://{server}" if status else "http://127.0.0.1:9"
    said: list[str] = []
    store = start_store(uri, "study", tmp_path, said.append)
    assert len(said) == 1
    assert said[0].startswith(f"the MLflow server {uri} does not answer (")
    assert reason in said[0]
    with pytest.raises(ServerAwayError, match="does not answer"):
        log(store, tmp_path)
    write_json(tmp_path / "tracking.json", store)
    said.clear()
    found, lacking = from_runs(tmp_path / "tracking.json", [tmp_path / "ztw.json"], said.append)
    assert found.equals(from_files([tmp_path / "ztw.json"]))
    assert lacking == {}
    assert len(said) == 1
    assert said[0].endswith("the tables are made from the cells' files")


def test_a_server_that_denies_access_is_an_error(tmp_path, server, monkeypatch):
    monkeypatch.setattr(Answering, "status", 401)
    with pytest.raises(ztw.ZtwError, match=r"cannot be used .*401") as caught:
        start_store(f"http://{server}", "study", tmp_path)
    assert not isinstance(caught.value, ServerAwayError)


INVALID_HOST = "Invalid Host header - possible DNS rebinding attack detected"  # MLflow's own text
DENIED = '{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'
ALLOWED = r"add {server} to the server's MLFLOW_SERVER_ALLOWED_HOSTS"
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
def test_a_server_that_denies_access_gives_a_hint(tmp_path, server, monkeypatch, status, body, hint):
    monkeypatch.setattr(Answering, "status", status)
    monkeypatch.setattr(Answering, "body", body)
    with pytest.raises(ztw.ZtwError) as caught:
        start_store(f"http://{server}", "study", tmp_path)
    assert str(caught.value).endswith(f"; {hint.format(server=server)}")


@pytest.mark.parametrize("status", [401, 503])
def test_a_password_reaches_the_server_and_nothing_else(tmp_path, server, monkeypatch, status):
    monkeypatch.setattr(Answering, "status", status)
    for name in ("USERNAME", "PASSWORD"):  # the tested code sets them; monkeypatch restores them
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


def test_a_password_of_a_database_is_not_shown(tmp_path, monkeypatch):
    given = "postgresql+nodriver://ann:secret@127.0.0.1/x"
    monkeypatch.setenv("ZTW_TRACKING", given)
    with pytest.raises(ztw.ZtwError, match="install the Python package") as caught:
        start_store(given, "study", tmp_path)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_starting_twice_keeps_the_experiment(store):
    folder = Path(store["uri"].removeprefix("sqlite:///")).parent
    before = experiment(store)
    assert start_store("sqlite", "study", folder) == store
    assert experiment(store) == before


def incomplete(path) -> None:
    """Write a database whose creation was interrupted: some tables, without the last migration."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")


@pytest.mark.parametrize(
    "spoil",
    [incomplete, lambda path: path.write_text("this is no database " * 100), lambda path: path.touch()],
)
def test_a_broken_database_is_set_aside_and_created_again(tmp_path, spoil):
    spoil(tmp_path / "mlflow.db")
    said: list[str] = []
    log(start_store("sqlite", "study", tmp_path, said.append), tmp_path)
    assert len(said) == 1
    assert "mlflow.db is broken" in said[0]
    assert "kept as mlflow.db.broken1" in said[0]
    assert (tmp_path / "mlflow.db.broken1").exists()


KILLED_WHILE_WRITING = """
import os, signal, sqlite3, sys
store = sqlite3.connect(sys.argv[1])
store.execute("PRAGMA cache_size = 1")
for number in range(3000):
    store.execute("INSERT INTO experiment_tags VALUES (?, ?, 0)", (str(number), "x" * 400))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_write_does_not_break_the_store(tmp_path):
    """SQLite's journal stays beside the file. With it, SQLite undoes the interrupted write."""
    store, database = start_store("sqlite", "study", tmp_path), tmp_path / "mlflow.db"
    log(store, tmp_path)
    subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(database)], check=False)
    assert (tmp_path / "mlflow.db-journal").exists()
    assert prepare(database) is None
    assert read_copies(store, [tmp_path / "ztw.json"])[1] == {}


def test_a_journal_goes_with_the_database_that_is_set_aside(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database " * 100)
    (tmp_path / "mlflow.db-shm").write_bytes(b"x")
    assert "kept as mlflow.db.broken1" in str(prepare(tmp_path / "mlflow.db"))
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db.broken1", "mlflow.db.broken1-shm"}


def test_a_database_that_is_locked_is_left_alone(tmp_path):
    start_store("sqlite", "study", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert prepare(tmp_path / "mlflow.db") is None
    assert (tmp_path / "mlflow.db").exists()


def test_an_interrupted_start_leaves_no_incomplete_store(tmp_path, monkeypatch):
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
    log(store, tmp_path)
    for use in (
        lambda say: read_copies(store, [tmp_path / "ztw.json"], say),
        lambda say: log_cell(store, CellResults(CELL, "v", parts(tmp_path)), say),
    ):
        MlflowClient(store["uri"]).delete_experiment(experiment(store))
        said: list[str] = []
        use(said.append)
        assert said == ["the experiment study had been deleted in MLflow: restored, with its runs"]
    assert read_copies(store, [tmp_path / "ztw.json"])[1] == {}


def test_an_experiment_that_was_removed_for_good_is_created_again(tmp_path):
    """`mlflow gc` removes experiments."""
    store = start_store("sqlite", "study", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("DELETE FROM experiments WHERE name = 'study'")
    log(store, tmp_path)
    assert read_copies(store, [tmp_path / "ztw.json"])[1] == {}


def test_a_missing_database_is_reported(tmp_path):
    store = start_store("sqlite", "study", tmp_path)
    (tmp_path / "mlflow.db").unlink()
    with pytest.raises(ztw.ZtwError, match=r"mlflow.db is missing; run again"):
        log(store, tmp_path)
    assert not (tmp_path / "mlflow.db").exists(), "opening it would have created an empty one"


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
    assert "was moved" in said[0]
    second = log(store, tmp_path, cell=Cell("digits", "resnet8", 1))
    client = MlflowClient(store["uri"])
    for runs in (first, second):
        run = runs["runs"]["method"]["ztw"]
        assert [artifact.path for artifact in client.list_artifacts(run)] == ["ztw.json"]
        assert client.download_artifacts(run, "ztw.json", str(tmp_path)).endswith("ztw.json")
    assert not old.exists(), "nothing is written to the old place"


@pytest.fixture(scope="module")
def served(store, tmp_path_factory):
    """A network, its rules by budget, and the URI of its model."""
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
    write_network(folder / "ztw", facts, [part], rules)  # as in a study: the weights are in another folder
    results = CellResults(Cell("digits", "resnet8", 3), "v", parts(folder), models={"ztw": folder / "ztw"})
    run = log_cell(store, results)["runs"]["method"]["ztw"]
    shutil.rmtree(folder)
    (model,) = models_of(store, run)
    return network, dict(rules), f"models:/{model.model_id}"


def models_of(store, run: str):
    return MlflowClient(store["uri"]).search_logged_models([experiment(store)], f"source_run_id = '{run}'")


@pytest.fixture
def in_store(store):
    """Let MLflow's own functions use the store."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store["uri"])
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("in_store")
def test_a_method_s_network_loads_as_a_model_and_predicts_like_infer(served, caplog):
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
def test_a_model_has_a_signature(served):
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


def test_a_model_has_a_name_and_the_headlines_and_goes_with_its_run(store, tmp_path):
    ztw.save(small_network(), tmp_path / "net", ztw.MaxSoftmax(0.5), progress=False)
    cell = Cell("digits", "torchvision/resnet18", 5)
    results = CellResults(cell, "v", parts(tmp_path), models={"ztw": tmp_path / "net"})
    first = log_cell(store, results)["runs"]["method"]["ztw"]
    (model,) = models_of(store, first)
    assert (model.name, str(model.status)) == ("ztw-seed5", "READY")
    assert {metric.key: metric.value for metric in model.metrics} == {"at_0.5/accuracy": 0.9}
    second = log_cell(store, results)["runs"]["method"]["ztw"]
    assert (models_of(store, first), len(models_of(store, second))) == ([], 1)


def test_an_experiment_and_a_cell_are_described(tmp_path):
    tags = experiment_tags("study", "make reproduce", ["0.5", "max"], timed=True)
    store = start_store("sqlite", "study", tmp_path, tags=tags)
    client = MlflowClient(store["uri"])
    kept = client.get_experiment(experiment(store)).tags
    assert tags.items() <= kept.items()
    assert "at_0.5/relative_time" in kept["mlflow.sharedViewState.methods"]
    figure = tmp_path / "accuracy_cost.png"
    figure.write_bytes(b"a figure")
    results = CellResults(CELL, "v", parts(tmp_path), artifacts={"cell": [figure]})
    (run,) = log_cell(store, results)["runs"]["cell"].values()
    note = client.get_run(run).data.tags["mlflow.note.content"]
    assert note == (
        f"![accuracy against cost](get-artifact?path=accuracy_cost.png&run_uuid={run})\n\n"
        "| method | at_0.5/accuracy |\n| --- | ---: |\n| ztw | 0.9000 |"
    )


def test_a_method_without_a_rule_has_no_model(store, tmp_path):
    ztw.save(small_network(), tmp_path / "net", progress=False)
    results = CellResults(
        Cell("digits", "resnet8", 4), "v", parts(tmp_path), models={"ztw": tmp_path / "net"}
    )
    run = log_cell(store, results)["runs"]["method"]["ztw"]
    assert models_of(store, run) == []
