"""MLflow: every result of a cell as runs nested under it. The only module that imports mlflow.

Runs are written from the JSON files that the jobs left, after the computing is done: a tracking
server that cannot be reached never costs a training, and `ztw` computes without mlflow.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from ztw.errors import ZtwError
from ztw.files import read_json

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

PARENT = "mlflow.parentRunId"
CELL = "ztw.cell"
OWNER = "ztw.owner"
ANEW = "delete the study's tracking.json and runs.json files to log it again"


def store_uri(tracking: str, study_folder: Path | str) -> str:
    """The MLflow URI of a config's `tracking`: "sqlite" is mlflow.db in the study's folder."""
    if tracking == "sqlite":
        return f"sqlite:///{Path(study_folder) / 'mlflow.db'}"
    return tracking


def _reachable(uri: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:  # mlflow, sqlalchemy, alembic and requests each raise their own
        if isinstance(error, ZtwError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ZtwError(
            f"tracking: the MLflow store {uri!r} cannot be used ({reason}); start it, or set tracking to"
            " sqlite or none"
        ) from error


def start_store(tracking: str, study: str, study_folder: Path | str) -> dict[str, str]:
    """Create the store and the study's experiment, once and alone: several first starts break a store.

    Returns {"uri", "experiment_id", "owner"}: the owner tells this folder's runs from those of others on
    a shared server. Raises ZtwError when the store cannot be reached.
    """
    uri = store_uri(tracking, study_folder)
    logging.getLogger("alembic").setLevel(logging.ERROR)

    def create() -> str:
        client = MlflowClient(uri)
        existing = client.get_experiment_by_name(study)
        if existing is not None:
            return existing.experiment_id
        place = str(Path(study_folder) / "mlflow-artifacts") if tracking == "sqlite" else None
        return client.create_experiment(study, artifact_location=place)

    owner = "local" if tracking == "sqlite" else uuid.uuid4().hex
    return {"uri": uri, "experiment_id": _reachable(uri, create), "owner": owner}


def track_cell(
    store: Mapping[str, str],
    study: str,
    cell: Mapping[str, Any],
    parts: Mapping[str, list[str]],
    artifacts: Mapping[str, list[str]],
    code_version: str,
) -> dict[str, Any]:
    """Write a cell's runs, replacing those of an earlier time, and return their ids.

    store: what `start_store` returned; parts: kind ("backbone", "ics", "ensemble", "method") -> JSON
    files the jobs wrote; artifacts: name of a run -> files to keep with it, "cell" for
    the cell's own.
    Returns {"dataset", "arch", "seed", "runs": {kind: {title: run id}}}.
    Raises ZtwError when the store cannot be reached.
    """
    uri = store["uri"]
    return _reachable(
        uri,
        lambda: _write_cell(MlflowClient(uri), store, study, cell, parts, artifacts, code_version),
    )


def _write_cell(
    client: MlflowClient,
    store: Mapping[str, str],
    study: str,
    cell: Mapping[str, Any],
    parts: Mapping[str, list[str]],
    artifacts: Mapping[str, list[str]],
    code_version: str,
) -> dict[str, Any]:
    name = "{dataset}/{arch}/seed{seed}".format(**cell)
    experiment = store["experiment_id"]
    _delete_earlier(client, experiment, store["owner"], name)
    tags = {
        OWNER: store["owner"],
        CELL: name,
        "study": study,
        **{key: str(value) for key, value in cell.items()},
        "code_version": code_version,
    }
    parent = client.create_run(experiment, run_name=name, tags={**tags, "kind": "cell"}).info.run_id
    ids: dict[str, Any] = {kind: {} for kind in parts}
    for kind, files in parts.items():
        for file in files:
            facts = read_json(file)
            title = _title(kind, facts)
            run = client.create_run(
                experiment, run_name=title, tags={**tags, PARENT: parent, "kind": kind, **_method_tag(facts)}
            )
            _log(client, run.info.run_id, facts)
            for artifact in [file, *artifacts.get(title, [])]:
                client.log_artifact(run.info.run_id, str(artifact))
            client.set_terminated(run.info.run_id)
            ids[kind][title] = run.info.run_id
    for artifact in artifacts.get("cell", []):
        client.log_artifact(parent, artifact)
    client.set_terminated(parent)
    return {**cell, "seed": int(cell["seed"]), "runs": {"cell": {name: parent}, **ids}}


def _delete_earlier(client: MlflowClient, experiment: str, owner: str, cell: str) -> None:
    query = f"tags.`{CELL}` = '{cell}' and tags.`{OWNER}` = '{owner}'"
    while runs := client.search_runs([experiment], query, max_results=1000):
        for run in runs:
            client.delete_run(run.info.run_id)


def _method_tag(facts: Mapping[str, Any]) -> dict[str, str]:
    return {"method": facts["method"]} if "method" in facts else {}


def _title(kind: str, facts: Mapping[str, Any]) -> str:
    match kind:
        case "ics":
            return f"ics {facts['ics']}"
        case "ensemble":
            return f"ensemble {facts['ics']} {facts['ensemble']}"
        case "method":
            return facts["method"]
    return kind


def _log(client: MlflowClient, run_id: str, facts: Mapping[str, Any]) -> None:
    """Parameters, per-epoch metrics and final metrics of one JSON file."""
    params = {key: value for key, value in facts.items() if isinstance(value, str | int | float | bool)}
    for section in ("settings", "versions", "origin"):
        values = dict(facts.get(section, {}))
        values |= values.pop("recipe", {})
        params |= {f"{section}.{key}": value for key, value in values.items()}
    metrics = []
    for row in facts.get("history", []):
        when = int(row["finished"] * 1000)
        metrics += [
            Metric(key, float(row[key]), when, int(row["epoch"]))
            for key in ("loss", "accuracy", "lr", "seconds")
        ]
    for split, value in facts.get("accuracy", {}).items():
        metrics.append(Metric(f"{split}_accuracy", value, 0, 0))
    for exit, value in enumerate(facts["loss"] if isinstance(facts.get("loss"), list) else [], 1):
        metrics.append(Metric("exit_loss", value, 0, exit))
    for key, value in facts.get("metrics", {}).items():
        metrics.append(Metric(key, float("nan") if value is None else value, 0, 0))
    for start in range(0, max(len(metrics), 1), 900):  # MLflow takes at most 1000 at a time
        client.log_batch(
            run_id,
            metrics=metrics[start : start + 900],
            params=[Param(key, str(value)[:500]) for key, value in params.items()] if not start else [],
        )
    client.set_tag(run_id, "mlflow.source.name", "ztw")


def read_metrics(store: Mapping[str, str], run_id: str) -> dict[str, float]:
    """The metrics of one run; raises ZtwError naming the run when it is missing or deleted."""
    uri = store["uri"]

    def read() -> dict[str, float]:
        try:
            run = MlflowClient(uri).get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise ZtwError(f"tracking: run {run_id} is not in {uri!r}; {ANEW}") from error
            raise
        if run.info.lifecycle_stage != "active":
            raise ZtwError(f"tracking: run {run_id} was deleted from {uri!r}; {ANEW}")
        return dict(run.data.metrics)

    return _reachable(uri, read)
