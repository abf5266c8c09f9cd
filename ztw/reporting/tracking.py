"""Log the results of cells in MLflow, as runs nested under a run of the cell.

Runs are logged from the result files, after all computing, so that no training is lost if a server cannot be reached.
Every run has a copy of its file, from which the tables are made. A store's URI is saved, shown and given to MLflow
without user name and password.
"""

from __future__ import annotations

import logging
import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before the import of mlflow, which starts telemetry
os.environ["DO_NOT_TRACK"] = "true"  # MLflow does not accept the usual value 1

import json
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from ztw.errors import ZtwError, without_password
from ztw.files import atomic, check_seal, read_json, sha256
from ztw.progress import Note, Report
from ztw.reporting import sqlite_store
from ztw.reporting.mlflow_names import headlines, metrics_of, params_of, title_of
from ztw.reporting.mlflow_view import NOTE, cell_note
from ztw.reporting.tracked_models import delete_models, log_model
from ztw.study.layout import Cell

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

PARENT = "mlflow.parentRunId"
# Tags: the cell, the id of the study's folder, and the SHA-256 of the run's file
CELL, OWNER, SEAL = "ztw.cell", "ztw.owner", "ztw.sha256"
SQLITE = "sqlite:///"
# Seconds within which a server must answer the first request; later requests of many cells may take longer
ANSWERS_WITHIN = 20
# Environment variable of a study's jobs: the key `tracking` with its password, which must not be in Snakemake's params
GIVEN = "ZTW_TRACKING"
REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")  # MLflow's names of the statuses 401 and 403
FINISHED = " and attributes.status = 'FINISHED'"
# MLflow takes at most 1000 metrics per request, and returns at most 50,000 runs
BATCH, MOST_RUNS = 900, 50_000


class ServerAwayError(ZtwError):
    """The server does not answer (refused, timed out, 5xx). A later call may log the runs."""


@dataclass(frozen=True)
class CellResults:
    """The results of a cell to log.

    Args:
        code_version: the code that computed the results.
        parts: kind ("backbone", "ics", "ensemble", "method") -> JSON files of the jobs; each becomes a run.
        artifacts: title of a run -> further files to log with it; "cell" -> files of the cell's run.
        protocol: the protocol of the headline accuracies.
        times: method -> budget -> relative time, if measured.
        models: method -> folder of its network, if logged as a model.
    """

    cell: Cell
    code_version: str
    parts: Mapping[str, Sequence[Path]]
    artifacts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    protocol: str = "held-out"
    times: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    models: Mapping[str, Path] = field(default_factory=dict)

    def headlines(self, content: Mapping[str, Any]) -> dict[str, float]:
        """Return the headlines of a method, from the content of its file."""
        return headlines(content, self.protocol, self.times.get(content["method"]))


def start_store(
    tracking: str,
    study: str,
    folder: Path,
    report: Report = print,
    tags: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Create the store and the study's experiment, before parallel jobs use the store: parallel starts break a new one.

    Args:
        tracking: "sqlite" for mlflow.db in the study's folder, or a URI.
        study: name of the experiment.
        folder: the study's folder.
        report: called if the server is away or the database was repaired.
        tags: of the experiment, from `experiment_tags`.

    Returns:
        {"uri", "experiment", "owner"}; "owner" identifies this folder's runs on a shared server.

    Raises:
        ZtwError: if the store cannot be used.
    """
    own, database = tracking == "sqlite", folder / "mlflow.db"
    uri = f"{SQLITE}{database}" if own else without_password(tracking)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if own:
        _make_database(database, report)
    store = {"uri": uri, "experiment": study, "owner": "local" if own else uuid.uuid4().hex}
    try:
        client, experiment = open_store(store, report)
        with _errors_of(uri):
            for name, value in (tags or {}).items():
                client.set_experiment_tag(experiment, name, value)
    except ServerAwayError as away:  # `log_cell` creates the experiment later
        report(str(away))
    return store


def _make_database(database: Path, report: Report) -> None:
    """Create the database under a temporary name, so that an interrupted start leaves no incomplete database."""
    if done := sqlite_store.prepare(database):
        report(Note(done))
    if not database.exists():
        with _errors_of(f"{SQLITE}{database}"), atomic(database) as scratch:
            scratch.touch()  # gives it the usual mode: SQLite's own files are not writable for the group
            MlflowClient(f"{SQLITE}{scratch}").search_experiments()


def open_store(store: Mapping[str, str], report: Report = print) -> tuple[MlflowClient, str]:
    """Open a store of `start_store`; restore a deleted experiment, or create it again.

    Returns:
        A client, and the id of the study's experiment.

    Raises:
        ServerAwayError: if the server does not answer.
        ZtwError: if the store cannot be used, or the study's database is missing (MLflow would create an empty one).
    """
    uri, name = store["uri"], store["experiment"]
    database = _database(uri)
    if database is not None and not database.exists():
        raise ZtwError(f"tracking: {database} is missing; run again to log every cell again")
    with _errors_of(uri):
        client = _client(uri)
        if uri.startswith("http"):
            http_request(get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=ANSWERS_WITHIN)
        found = client.get_experiment_by_name(name)
        if found is None:
            return client, _create_experiment(client, name, database)
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
            report(Note(f"the experiment {name} had been deleted in MLflow: restored, with its runs"))
        return client, found.experiment_id


def _create_experiment(client: MlflowClient, name: str, database: Path | None) -> str:
    """Create the experiment, or return the one that another cell has created at the same time."""
    try:
        place = sqlite_store.artifacts_of(database) if database else None
        return client.create_experiment(name, place)
    except MlflowException:
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id


def _database(uri: str) -> Path | None:
    """Return the file of a SQLite store; None for any other store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _client(uri: str) -> MlflowClient:
    """Return a client. User name and password go into MLflow's variables, because MLflow writes URIs into errors."""
    given = os.environ.get(GIVEN, "")
    if given == uri or without_password(given) != uri:
        return MlflowClient(uri)
    if not uri.startswith("http"):
        return MlflowClient(given)
    parts = urlsplit(given)
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return MlflowClient(uri)


def log_cell(store: Mapping[str, str], results: CellResults, report: Report = print) -> dict[str, Any]:
    """Log a cell's runs, then delete the runs of earlier calls.

    Returns:
        {"dataset", "arch", "seed", "runs": {kind: {title: run id}}}.

    Raises:
        ServerAwayError: if the server does not answer.
        ZtwError: if the store cannot be used.
    """
    client, experiment = open_store(store, report)
    cell = results.cell
    own = {OWNER: store["owner"], CELL: str(cell)}
    tags = {**own, "mlflow.source.name": "ztw", "study": store["experiment"]}
    tags |= {name: str(value) for name, value in asdict(cell).items()} | {
        "code_version": results.code_version
    }
    with _errors_of(store["uri"]):
        created = client.create_run(experiment, run_name=str(cell), tags={**tags, "kind": "cell"})
        parent = created.info.run_id
        runs = {"cell": {str(cell): parent}}
        for kind, files in results.parts.items():
            of_kind = {**tags, "kind": kind, PARENT: parent}
            runs[kind] = dict(_log_part(client, experiment, of_kind, file, results) for file in files)
        _describe_cell(client, parent, results)
        _end(client, parent, results.artifacts.get("cell", []))
        kept = {run for of_kind in runs.values() for run in of_kind.values()}
        for run in _search(client, experiment, own):
            # of an earlier or interrupted call, or created twice because a response was lost
            if run.info.run_id not in kept:
                delete_models(client, experiment, run.info.run_id)
                client.delete_run(run.info.run_id)
    return {**asdict(cell), "runs": runs}


def _log_part(
    client: MlflowClient, experiment: str, tags: Mapping[str, str], file: Path, results: CellResults
) -> tuple[str, str]:
    """Log one JSON file as a run; return its title and id."""
    content, kind = read_json(file), tags["kind"]
    title = title_of(kind, content)
    name = f"{title} seed{results.cell.seed}"
    own = {**tags, SEAL: sha256(file)} | ({"method": title} if kind == "method" else {})
    run = client.create_run(experiment, run_name=name, tags=own).info.run_id
    metrics = [Metric(*metric) for metric in metrics_of(content)]
    params = [Param(*param) for param in params_of(content).items()]
    for start in range(0, max(len(metrics), 1), BATCH):
        client.log_batch(run, metrics=metrics[start : start + BATCH], params=[] if start else params)
    if kind == "method":
        found = results.headlines(content)
        client.log_batch(run, [Metric(*metric, 0, 0) for metric in found.items()])
        if title in results.models:
            log_model(client, experiment, run, name, results.models[title], found)
    _end(client, run, [file, *results.artifacts.get(title, [])])
    return title, run


def _describe_cell(client: MlflowClient, run: str, results: CellResults) -> None:
    """Log the headlines of all methods with the cell's run, and describe the run by them and its figure."""
    contents = map(read_json, results.parts.get("method", ()))
    found = {content["method"]: results.headlines(content) for content in contents}
    metrics = [Metric(f"{method}/{n}", v, 0, 0) for method, of in found.items() for n, v in of.items()]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run, metrics[start : start + BATCH])
    figures = [file.name for file in results.artifacts.get("cell", ()) if file.suffix == ".png"]
    client.set_tag(run, NOTE, cell_note(run, next(iter(figures), None), found))


def _end(client: MlflowClient, run: str, artifacts: Iterable[Path]) -> None:
    for artifact in artifacts:
        client.log_artifact(run, str(artifact))
    client.set_terminated(run)


def read_copies(
    store: Mapping[str, str], files: Iterable[Path], report: Report = print
) -> tuple[dict[Path, Any], dict[Path, str]]:
    """Read the copies of files in a study's runs, if they are equal to the files.

    Args:
        store: from `start_store`.
        files: metrics files of the jobs.
        report: called if a deleted experiment was restored.

    Returns:
        file -> content of its copy; and, for files without an equal copy, file -> what is wrong.

    Raises:
        ServerAwayError: if the server does not answer.
        ZtwError: if the store cannot be used, or a file was altered.
    """
    client, experiment = open_store(store, report)
    copies, lacking = {}, {}
    with _errors_of(store["uri"]):
        found = _search(client, experiment, {OWNER: store["owner"], "kind": "method"}, FINISHED)
        runs = {run.data.tags.get(SEAL): run for run in found}
        for file in files:
            check_seal(file)
            content = _read_copy(store["uri"], runs.get(sha256(file)), file.name)
            if isinstance(content, str):
                lacking[file] = f"{file}: {content}"
            else:
                copies[file] = content
    return copies, lacking


def _read_copy(uri: str, run: Run | None, name: str) -> dict[str, Any] | str:
    """Return the content of a run's copy of a file, or a text that says what is wrong."""
    if run is None:
        return "no run in MLflow has this result"
    run_id = run.info.run_id
    # MlflowClient would look up the run again in each call
    kept = get_artifact_repository(run.info.artifact_uri, uri)
    if name not in [artifact.path for artifact in kept.list_artifacts()]:
        return f"its run {run_id} in MLflow has no copy of the file"
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(kept.download_artifacts(name, scratch))
        if sha256(copy) != run.data.tags[SEAL]:
            return f"the copy in MLflow's run {run_id} was altered"
        content: dict[str, Any] = json.loads(copy.read_bytes())
    gone = {metric for metric, *_ in metrics_of(content)} - run.data.metrics.keys()
    return f"its run {run_id} in MLflow has no metric {min(gone)!r}" if gone else content


def _search(client: MlflowClient, experiment: str, tags: Mapping[str, str], more: str = "") -> list[Run]:
    """Find the existing runs with these tags; more: a further condition."""
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items()) + more
    return list(client.search_runs([experiment], query, max_results=MOST_RUNS))


@contextmanager
def _errors_of(uri: str) -> Iterator[None]:
    """Convert all errors of a store to ZtwError; mlflow, sqlalchemy, alembic and requests raise their own types."""
    try:
        yield
    except ZtwError:
        raise
    except Exception as error:
        text = without_password(" ".join(str(error).split()))
        if _is_away(uri, error):
            cause = without_password(" ".join(str(_causes(error)[-1]).split())[-200:])
            raise ServerAwayError(f"the MLflow server {uri} does not answer ({cause})") from error
        raise ZtwError(
            f"tracking: the MLflow store {uri!r} cannot be used ({text[:200]}); {_hint(uri, error)}"
        ) from error


def _is_away(uri: str, error: Exception) -> bool:
    """Return whether a server does not answer now. An invalid URI is another error."""
    if _database(uri) is not None:
        return False
    # requests raises OSErrors; those about an invalid URI are ValueErrors, too
    if isinstance(error, MlflowException):
        return any(
            isinstance(cause, OSError) and not isinstance(cause, ValueError) for cause in _causes(error)
        )
    return type(error).__name__ == "OperationalError"  # sqlalchemy's


def _causes(error: BaseException) -> list[BaseException]:
    """Return an exception and its chain of causes, the first cause last."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return causes


def _hint(uri: str, error: Exception) -> str:
    """Return what to do, by the kind of store."""
    if isinstance(error, ImportError) or any(
        word in str(error) for word in ("No module named", "load plugin")
    ):
        return "install the Python package for this kind of database"
    if "unsupported URI" in str(error):
        return "give sqlite, none, or the http address of a tracking server"
    if (database := _database(uri)) is not None:
        return f"close other programs that use {database}, or delete it to log the runs again"
    if (code := getattr(error, "error_code", "")) in REFUSALS:
        login = "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        hosts = f"add {urlsplit(uri).netloc} to the server's MLFLOW_SERVER_ALLOWED_HOSTS"
        if "Invalid Host header" in str(error):
            return hosts
        return login if code == "UNAUTHENTICATED" else f"{hosts}, or {login}"
    return "start it, or set tracking to sqlite or none"
