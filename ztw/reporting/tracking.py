"""MLflow: every result of a cell as runs nested under it. The only module that imports mlflow.

Runs are written from the files that the jobs left, after the computing is done: a tracking server that cannot be
reached never costs a training, and `ztw` computes without mlflow. Every run holds a copy of its file, from which the
tables are made. A store's URI is kept, shown and given to MLflow without user name and password.
"""

from __future__ import annotations

import logging
import os

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before mlflow: its import starts telemetry, or does not
os.environ["DO_NOT_TRACK"] = "true"  # MLflow does not know the usual 1

import json
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from ztw.errors import ZtwError, without_password
from ztw.evaluation.network_folder import copy_network
from ztw.files import atomic, check_seal, read_json, sha256
from ztw.progress import Note, Report
from ztw.reporting import sqlite_store
from ztw.reporting.mlflow_names import headlines, metrics_of, params_of, title_of
from ztw.study.layout import Cell

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

MODEL = "model"  # where it is among a run's files
# Named, not imported: what loads a model later changes nothing that is tracked.
LOADER = "ztw.reporting.mlflow_model"
PARENT = "mlflow.parentRunId"
# Tags: the cell, the folder of the study that logged it, and the SHA-256 of the file that a run was made from
CELL, OWNER, SEAL = "ztw.cell", "ztw.owner", "ztw.sha256"
SQLITE = "sqlite:///"
# Seconds, of a server that is there; many cells at once may wait longer for what they ask of it.
ANSWERS_WITHIN = 20
# In the environment of a study's jobs: `tracking` as the study has it, with its password. Params are written down.
GIVEN = "ZTW_TRACKING"
REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED")  # MLflow's names of the statuses 401 and 403
FINISHED = " and attributes.status = 'FINISHED'"
BATCH, MOST_RUNS = 900, 50_000  # MLflow takes at most 1000 metrics at a time, and gives so many runs


class ServerAwayError(ZtwError):
    """The server does not answer (refused, timed out, 5xx): the next call can deliver the runs."""


@dataclass(frozen=True)
class CellResults:
    """What is logged of a cell.

    Args:
        cell: which.
        code_version: what computed it.
        parts: kind ("backbone", "ics", "ensemble", "method") -> JSON files that the jobs wrote, a run each.
        artifacts: title of a run -> further files to keep with it; "cell": with the cell's own.
        protocol: whose accuracies are the headlines.
        times: method -> budget -> relative time, where it was measured.
        models: method -> folder of its network, of those that are logged as a model.
    """

    cell: Cell
    code_version: str
    parts: Mapping[str, Sequence[Path]]
    artifacts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    protocol: str = "held-out"
    times: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    models: Mapping[str, Path] = field(default_factory=dict)


def start_store(tracking: str, study: str, folder: Path, report: Report = print) -> dict[str, str]:
    """Create the store and the study's experiment, once and alone: several first starts break a store.

    Args:
        tracking: "sqlite", which is mlflow.db in the study's folder, or a URI.
        study: name of the experiment.
        folder: of the study.
        report: gets a line about a server that is away, and a note about a broken database.

    Returns:
        {"uri", "experiment", "owner"}; the owner tells this folder's runs from those of others on a shared server.

    Raises:
        ZtwError: the store cannot be used.
    """
    own, database = tracking == "sqlite", folder / "mlflow.db"
    uri = f"{SQLITE}{database}" if own else without_password(tracking)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if own:
        _make_database(database, report)
    store = {"uri": uri, "experiment": study, "owner": "local" if own else uuid.uuid4().hex}
    try:
        open_store(store, report)
    except ServerAwayError as away:  # the experiment is created when the first runs are delivered
        report(str(away))
    return store


def _make_database(database: Path, report: Report) -> None:
    """Create the database under another name first: an interrupted start leaves none that is half made."""
    if said := sqlite_store.prepare(database):
        report(Note(said))
    if not database.exists():
        with _errors_of(f"{SQLITE}{database}"), atomic(database) as scratch:
            scratch.touch()  # with the mode of any other file; sqlite lets no group write its own
            MlflowClient(f"{SQLITE}{scratch}").search_experiments()


def open_store(store: Mapping[str, str], report: Report = print) -> tuple[MlflowClient, str]:
    """Open a store of `start_store`; an experiment that was deleted is restored, or created again.

    Returns:
        A client, and the id of the study's experiment.

    Raises:
        ServerAwayError: a server does not answer.
        ZtwError: the store cannot be used, or the study's database is gone; opening it would create an empty one.
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
    """Create the experiment, unless another cell does so: cells that are delivered later start at once."""
    try:
        place = sqlite_store.artifacts_of(database) if database else None
        return client.create_experiment(name, place)
    except MlflowException:
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id


def _database(uri: str) -> Path | None:
    """Return the file of a study's own store, None for a server or another kind of database."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _client(uri: str) -> MlflowClient:
    """Return a client; a server gets its password by MLflow's variables, since MLflow writes URIs into errors."""
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
    """Write a cell's runs, then delete those of earlier calls.

    Returns:
        {"dataset", "arch", "seed", "runs": {kind: {title: run id}}}.

    Raises:
        ServerAwayError: a server does not answer.
        ZtwError: the store cannot be used.
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
        _end(client, parent, results.artifacts.get("cell", []))
        kept = {run for of_kind in runs.values() for run in of_kind.values()}
        for run in _search(client, experiment, own):
            if run.info.run_id not in kept:  # earlier, broken off, or created twice as an answer was lost
                client.delete_run(run.info.run_id)
    return {**asdict(cell), "runs": runs}


def _log_part(
    client: MlflowClient, experiment: str, tags: Mapping[str, str], file: Path, results: CellResults
) -> tuple[str, str]:
    """Write the run of one JSON file; returns its title and id."""
    content, kind = read_json(file), tags["kind"]
    title = title_of(kind, content)
    own = {**tags, SEAL: sha256(file)} | ({"method": title} if kind == "method" else {})
    run = client.create_run(experiment, run_name=title, tags=own).info.run_id
    metrics = [Metric(*metric) for metric in metrics_of(content)]
    params = [Param(*param) for param in params_of(content).items()]
    for start in range(0, max(len(metrics), 1), BATCH):
        client.log_batch(run, metrics=metrics[start : start + BATCH], params=[] if start else params)
    if kind == "method":
        found = headlines(content, results.protocol, results.times.get(title))
        for place, prefix in ((run, ""), (tags[PARENT], f"{title}/")):
            client.log_batch(place, [Metric(f"{prefix}{name}", value, 0, 0) for name, value in found.items()])
        if title in results.models:
            _log_model(client, run, results.models[title])
    _end(client, run, [file, *results.artifacts.get(title, [])])
    return title, run


def _end(client: MlflowClient, run: str, artifacts: Iterable[Path]) -> None:
    for artifact in artifacts:
        client.log_artifact(run, str(artifact))
    client.set_terminated(run)


def _log_model(client: MlflowClient, run: str, network: Path) -> None:
    """Log a network of `ztw.save` as a pyfunc model, unless it has no rule to run with.

    The model returns what `ztw.reporting.mlflow_model` says. It loads where ztw can be imported; nothing in it is
    pickled.
    """
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model  # slow to import, and few cells log models
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    with tempfile.TemporaryDirectory() as scratch:
        content = copy_network(network, Path(scratch, "network"))
        if not content["rules"]:
            return
        shape = content["input_shape"]
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype("float32"), (-1, *shape))]),
            Schema([ColSpec("long", "class"), ColSpec("double", "probability"), ColSpec("long", "exit")]),
            ParamSchema([ParamSpec("budget", "string", str(content["rules"][0]["budget"]))]),
        )
        save_model(
            Path(scratch, MODEL),
            loader_module=LOADER,
            data_path=Path(scratch, "network"),
            signature=signature,
            input_example=np.zeros((1, *shape), np.float32),  # an image of the mean colour
            pip_requirements=[f"torch=={content['versions']['torch'].split('+')[0]}"],
        )
        client.log_artifacts(run, str(Path(scratch, MODEL)), MODEL)


def read_copies(
    store: Mapping[str, str], files: Iterable[Path], report: Report = print
) -> tuple[dict[Path, Any], dict[Path, str]]:
    """Read the copies of files that a study's runs hold, each the same to the last byte.

    Args:
        store: of `start_store`.
        files: metrics of methods, as the jobs wrote them.
        report: gets a note about an experiment that was deleted.

    Returns:
        file -> content of its copy; and file -> what is wrong in MLflow, of those without such a copy.

    Raises:
        ServerAwayError: a server does not answer.
        ZtwError: the store cannot be used, or a file was altered.
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
    """Return the content of a run's copy of a file, or a text that says what is wrong with it."""
    if run is None:
        return "no run in MLflow has this result"
    run_id = run.info.run_id
    kept = get_artifact_repository(run.info.artifact_uri, uri)  # a client would ask for the run each time
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
    """Find the runs with these tags that nobody has deleted; more: a further condition."""
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items()) + more
    return list(client.search_runs([experiment], query, max_results=MOST_RUNS))


@contextmanager
def _errors_of(uri: str) -> Iterator[None]:
    """Raise what a store raises as a ZtwError: mlflow, sqlalchemy, alembic and requests each have their own."""
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
