"""MLflow: every result of a cell as runs nested under it. The only module that imports mlflow.

Runs are written from the JSON files that the jobs left, after the computing is done: a tracking
server that cannot be reached never costs a training, and `ztw` computes without mlflow.
A store's URI is kept, shown and given to MLflow without user name and password.
"""

from __future__ import annotations

import logging
import os
import shutil

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before mlflow: its import starts telemetry, or does not
os.environ["DO_NOT_TRACK"] = "true"  # MLflow does not know the usual 1

import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from ztw.errors import ZtwError, without_password
from ztw.evaluation.network_folder import copy_network
from ztw.files import read_json
from ztw.progress import Note, Report
from ztw.reporting import sqlite_store
from ztw.reporting.mlflow_names import headlines, method_tag, metric_name, metrics_of, params_of, title_of

if TYPE_CHECKING:  # only a type: the wording of a key must not count as a change of what is tracked
    from ztw.study.layout import Cell

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")

MODEL = "model"  # where it is among a run's files
# Named, not imported: what loads a model later changes nothing that is tracked.
LOADER = "ztw.reporting.mlflow_model"
PARENT = "mlflow.parentRunId"
CELL = "ztw.cell"
OWNER = "ztw.owner"
SQLITE = "sqlite:///"
# Seconds, of a server that is there; many cells at once may wait longer for what they ask of it.
ANSWERS_WITHIN = 20
# In the environment of a study's jobs: `tracking` as the study has it, with its password. Params are written down.
GIVEN = "ZTW_TRACKING"
REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")  # MLflow's names of the statuses 401 and 403
AGAIN = "delete the study's tracking.json and runs.json files to log it again"


class ServerAwayError(ZtwError):
    """The server does not answer (refused, timed out, 5xx): what is not delivered can be later."""


@dataclass(frozen=True)
class CellResults:
    """What is logged of a cell; study: its name, code_version: what computed it.

    parts: kind ("backbone", "ics", "ensemble", "method") -> JSON files the jobs wrote; artifacts: name of
    a run -> files to keep with it, "cell" for the cell's own. protocol: whose accuracies are the headlines;
    times: method -> budget -> relative time, of what was measured; models: method -> folder of its network, of
    those that are logged as a model.
    """

    cell: Cell
    study: str
    code_version: str
    parts: Mapping[str, Sequence[Path | str]]
    artifacts: Mapping[str, Sequence[Path | str]]
    protocol: str = "held-out"
    times: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    models: Mapping[str, Path | str] = field(default_factory=dict)


def store_uri(tracking: str, study_folder: Path | str) -> str:
    """The MLflow URI of a config's `tracking`, its password left out: "sqlite" is mlflow.db in the study's folder."""
    if tracking == "sqlite":
        return f"{SQLITE}{Path(study_folder) / 'mlflow.db'}"
    return without_password(tracking)


def _database(uri: str) -> Path | None:
    """The file of a study's own store, None for a server or another kind of database."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _client(uri: str) -> MlflowClient:
    """A client of a store. MLflow writes URIs into its errors: a server's password goes to it by its own variables."""
    given = os.environ.get(GIVEN, "")
    if given == uri or without_password(given) != uri:
        return MlflowClient(uri)
    if not uri.startswith("http"):
        return MlflowClient(given)
    parts = urlsplit(given)
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return MlflowClient(uri)


def _reachable(uri: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:  # mlflow, sqlalchemy, alembic and requests each raise their own
        if isinstance(error, ZtwError):
            raise
        if _is_away(uri, error):
            reason = " ".join(str(_causes(error)[-1]).split())[-200:]
            raise ServerAwayError(f"the MLflow server {uri} is away ({without_password(reason)})") from error
        reason = without_password(" ".join(str(error).split()))[:200]
        raise ZtwError(
            f"tracking: the MLflow store {uri!r} cannot be used ({reason}); {_hint(uri, error)}"
        ) from error


def _is_away(uri: str, error: Exception) -> bool:
    """Whether the server, or the database on one, does not answer now; a URI that cannot be right is no such thing."""
    if _database(uri) is not None:
        return False
    if isinstance(error, MlflowException):  # around what requests raises, which are OSErrors
        return any(
            isinstance(cause, OSError) and not isinstance(cause, ValueError) for cause in _causes(error)
        )
    return type(error).__name__ == "OperationalError"  # of sqlalchemy


def _causes(error: BaseException) -> list[BaseException]:
    """An exception and those it was raised because of, the first cause last."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return causes


def _hint(uri: str, error: Exception) -> str:
    """What to do, by the kind of store."""
    if isinstance(error, ImportError) or any(
        word in str(error) for word in ("No module named", "load plugin")
    ):
        return "install the Python package that its kind of database needs"
    if "unsupported URI" in str(error):
        return "give sqlite, none, or the http address of a tracking server"
    if (database := _database(uri)) is not None:
        return f"close what else uses {database}, or delete it to have the runs logged again"
    if (code := getattr(error, "error_code", "")) in REFUSALS:
        login = "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        hosts = f"name {urlsplit(uri).netloc} in the server's MLFLOW_SERVER_ALLOWED_HOSTS"
        if "Invalid Host header" in str(error):
            return hosts
        return login if code == "UNAUTHENTICATED" else f"{hosts}, or {login}"
    return "start it, or set tracking to sqlite or none"


def start_store(
    tracking: str, study: str, study_folder: Path | str, report: Report = print
) -> dict[str, str]:
    """Create the store and the study's experiment, once and alone: several first starts break a store.

    A sqlite file is made under another name and moved when it is whole; half of one, which an interrupted
    start has left, is put aside. Returns {"uri", "experiment", "owner"}: the owner tells this folder's runs
    from those of others on a shared server, which may be away. Raises ZtwError when the store cannot be used.
    """
    uri = store_uri(tracking, study_folder)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if tracking == "sqlite":
        _make_database(Path(study_folder) / "mlflow.db", report)
    owner = "local" if tracking == "sqlite" else uuid.uuid4().hex
    store = {"uri": uri, "experiment": study, "owner": owner}
    try:
        open_store(store, report, new=True)
    except ServerAwayError as away:  # its experiment is made when the first runs are delivered
        report(str(away))
    return store


def _make_database(database: Path, report: Report) -> None:
    if database.exists() and not (sqlite_store.is_whole(database) and _was_finished(database)):
        report(
            Note(
                f"{database} was never finished, or is broken: kept as {sqlite_store.put_aside(database).name}"
            )
        )
    if database.exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(database) as scratch:
        scratch.touch()  # with the mode of any other file; sqlite lets no group write its own
        _reachable(f"{SQLITE}{database}", lambda: _try(scratch))
        scratch.replace(database)


def _was_finished(database: Path) -> bool:
    """Whether MLflow can open a store. One that has runs it could; of others a copy is tried."""
    if sqlite_store.holds_runs(database):
        return True
    with _scratch(database) as scratch:
        shutil.copyfile(database, scratch)
        try:
            _try(scratch)
        except Exception:  # what it says of half a store: duplicate columns, tables that are there already
            return False
    return True


@contextmanager
def _scratch(database: Path) -> Iterator[Path]:
    """A file beside a store, gone afterwards; never the same twice: MLflow remembers the stores it has opened."""
    scratch = database.with_name(f".{database.name}.{uuid.uuid4().hex}")
    try:
        yield scratch
    finally:
        scratch.unlink(missing_ok=True)


def _try(database: Path) -> None:
    """Let MLflow open a store, which makes it where there is none and finishes half of one if it can."""
    MlflowClient(f"{SQLITE}{database}").search_experiments()


def open_store(
    store: Mapping[str, str], report: Report = print, new: bool = False
) -> tuple[MlflowClient, str]:
    """A client, and the id of the study's experiment: restored when somebody deleted it, else made.

    store: of `start_store`; new: whether it may have no experiment yet. Places of artifacts are those beside a
    sqlite file as it lies now. Raises ServerAwayError when a server does not answer, ZtwError when the store cannot
    be used, and when a sqlite file is gone (opening it would make an empty one).
    """
    uri, name = store["uri"], store["experiment"]
    database = _database(uri)
    if database is not None and not database.exists():
        raise ZtwError(f"tracking: {database} is gone; {AGAIN}")

    def opened() -> tuple[MlflowClient, str]:
        if database is not None and sqlite_store.relocate(database):
            report(
                Note(f"the study has been moved: artifacts go to {database.parent / sqlite_store.ARTIFACTS}")
            )
        client = _client(uri)
        if uri.startswith("http"):
            http_request(get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=ANSWERS_WITHIN)
        found = client.get_experiment_by_name(name)
        if found is None:
            if not new:
                report(
                    Note(
                        f"no experiment {name} in MLflow (removed, or the server was away at first): made anew"
                    )
                )
            found = _make_experiment(client, name, database)
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
            report(Note(f"the experiment {name} had been deleted in MLflow: restored, with its runs"))
        return client, found.experiment_id

    return _reachable(uri, opened)


def _make_experiment(client: MlflowClient, name: str, database: Path | None) -> Experiment:
    """The experiment, made by whoever comes first: cells that are delivered later start at once."""
    # a URI: MLflow reads %20 in a plain path as a space
    place = (database.parent / sqlite_store.ARTIFACTS).absolute().as_uri() if database else None
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=place))
    except MlflowException:
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found


def log_cell(store: Mapping[str, str], results: CellResults, report: Report = print) -> dict[str, Any]:
    """Write a cell's runs, replacing those of an earlier time, and return their ids.

    store: what `start_store` returned.
    Returns {"dataset", "arch", "seed", "runs": {kind: {title: run id}}}.
    Raises ServerAwayError when a server does not answer, ZtwError when the store cannot be used.
    """
    client, experiment = open_store(store, report)
    return _reachable(store["uri"], lambda: _log_cell(client, experiment, store["owner"], results))


def _log_cell(client: MlflowClient, experiment: str, owner: str, results: CellResults) -> dict[str, Any]:
    cell = results.cell
    names = {"dataset": cell.dataset, "arch": cell.arch, "seed": cell.seed}
    tags = {
        "mlflow.source.name": "ztw",
        OWNER: owner,
        CELL: str(cell),
        "study": results.study,
        **{key: str(value) for key, value in names.items()},
        "code_version": results.code_version,
    }
    parent = client.create_run(experiment, run_name=str(cell), tags={**tags, "kind": "cell"}).info.run_id
    ids: dict[str, Any] = {"cell": {str(cell): parent}}
    for kind, files in results.parts.items():
        ids[kind] = {}
        for file in files:
            facts = read_json(file)
            title = title_of(kind, facts)
            own = {**tags, PARENT: parent, "kind": kind, **method_tag(facts)}
            run = client.create_run(experiment, run_name=title, tags=own).info.run_id
            _log(client, run, facts)
            if kind == "method":
                _log_headlines(client, (run, parent), facts, results)
            if kind == "method" and title in results.models:
                _log_model(client, run, Path(results.models[title]))
            _end(client, run, [file, *results.artifacts.get(title, [])])
            ids[kind][title] = run
    _end(client, parent, results.artifacts.get("cell", []))
    _delete_others(
        client, experiment, (owner, str(cell)), {run for runs in ids.values() for run in runs.values()}
    )
    return {**names, "runs": ids}


def _end(client: MlflowClient, run: str, artifacts: Iterable[Path | str]) -> None:
    for artifact in artifacts:
        client.log_artifact(run, str(artifact))
    client.set_terminated(run)


def _delete_others(client: MlflowClient, experiment: str, of: tuple[str, str], kept: set[str]) -> None:
    """Delete the runs of a cell (owner, cell) from before, from a try that broke off, and those that a request made
    twice, sent again because its answer was lost."""
    query = f"tags.`{OWNER}` = '{of[0]}' and tags.`{CELL}` = '{of[1]}'"
    found, page = [], None
    while page != "":
        runs = client.search_runs([experiment], query, max_results=1000, page_token=page)
        found += [run.info.run_id for run in runs]
        page = runs.token or ""
    for run in found:
        if run not in kept:
            client.delete_run(run)


def _log(client: MlflowClient, run_id: str, facts: Mapping[str, Any]) -> None:
    """Parameters, per-epoch metrics and final metrics of one JSON file."""
    metrics = [Metric(*metric) for metric in metrics_of(facts)]
    params = [Param(*param) for param in params_of(facts).items()]
    for start in range(0, max(len(metrics), 1), 900):  # MLflow takes at most 1000 at a time
        client.log_batch(run_id, metrics=metrics[start : start + 900], params=[] if start else params)


def _log_headlines(
    client: MlflowClient, runs: tuple[str, str], facts: Mapping[str, Any], results: CellResults
) -> None:
    """A method's headlines: plain in its own run, with its name before them in the cell's."""
    found = headlines(facts, results.protocol, results.times.get(facts["method"]))
    for run, prefix in zip(runs, ("", f"{facts['method']}/"), strict=True):
        client.log_batch(run, [Metric(f"{prefix}{name}", value, 0, 0) for name, value in found.items()])


def _log_model(client: MlflowClient, run: str, network: Path) -> None:
    """A network of `ztw.save` as a pyfunc model among a run's files, unless it has no rule to run with.

    It gives, for images, what `ztw.reporting.mlflow_model` says. It loads where ztw can be imported; nothing in it
    is pickled.
    """
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model  # slow to import, and few cells log models
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    with tempfile.TemporaryDirectory() as scratch:
        facts = copy_network(network, Path(scratch, "network"))
        if not facts["rules"]:
            return
        shape = facts["input_shape"]
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype("float32"), (-1, *shape))]),
            Schema([ColSpec("long", "class"), ColSpec("double", "probability"), ColSpec("long", "exit")]),
            ParamSchema([ParamSpec("budget", "string", str(facts["rules"][0]["budget"]))]),
        )
        save_model(
            Path(scratch, MODEL),
            loader_module=LOADER,
            data_path=Path(scratch, "network"),
            signature=signature,
            input_example=np.zeros((1, *shape), np.float32),  # an image of the mean colour
            pip_requirements=[f"torch=={facts['versions']['torch'].split('+')[0]}"],
        )
        client.log_artifacts(run, str(Path(scratch, MODEL)), MODEL)


def read_values(
    client: MlflowClient, uri: str, run_id: str, rows: Iterable[Mapping[str, Any]]
) -> list[float]:
    """The values that one run has for these metrics; client, uri: of the store.

    Raises ZtwError naming the run when it is missing or deleted, and the metric that it lacks.
    """

    def read() -> list[float]:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise ZtwError(f"tracking: run {run_id} is not in {uri!r}; {AGAIN}") from error
            raise
        if run.info.lifecycle_stage != "active":
            raise ZtwError(f"tracking: run {run_id} was deleted from {uri!r}; {AGAIN}")
        names = [metric_name(row) for row in rows]
        if missing := next((name for name in names if name not in run.data.metrics), None):
            raise ZtwError(f"tracking: run {run_id} in {uri!r} has no metric {missing!r}; {AGAIN}")
        return [run.data.metrics[name] for name in names]

    return _reachable(uri, read)
