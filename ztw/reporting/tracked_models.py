"""Log networks as models in MLflow, below the run of their method."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric

from ztw.evaluation.network_folder import copy_network

# A name instead of an import, so that an edit of the module runs no job again
LOADER = "ztw.reporting.mlflow_model"
PAGE = 100  # models per request


def log_model(
    client: MlflowClient, experiment: str, run: str, name: str, network: Path, headlines: Mapping[str, float]
) -> None:
    """Log a network as a pyfunc model, with its headline metrics, unless it has no rule.

    `ztw.reporting.mlflow_model` defines the model's output. Loading the model needs ztw, and unpickles nothing.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model  # slow to import, and few cells log models
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    with tempfile.TemporaryDirectory() as scratch:
        content = copy_network(network, Path(scratch, "network"))
        if not content["rules"]:
            return
        shape = content["inputs"]["inputs"][0]["shape"]
        signature = ModelSignature(
            Schema([TensorSpec(np.dtype("float32"), (-1, *shape))]),
            Schema([ColSpec("long", "class"), ColSpec("double", "probability"), ColSpec("long", "exit")]),
            ParamSchema([ParamSpec("budget", "string", str(content["rules"][0]["budget"]))]),
        )
        found = client.create_logged_model(experiment, re.sub(r"[^A-Za-z0-9_-]", "-", name), run)
        save_model(
            Path(scratch, "model"),
            loader_module=LOADER,
            data_path=Path(scratch, "network"),
            mlflow_model=Model(run_id=run, model_id=found.model_id),
            signature=signature,
            input_example=np.zeros((1, *shape), np.float32),  # an image of the mean colour
            pip_requirements=[f"torch=={content['versions']['torch'].split('+')[0]}"],
        )
        client.log_model_artifacts(found.model_id, str(Path(scratch, "model")))
    client.finalize_logged_model(found.model_id, "READY")
    client.log_outputs(run, [LoggedModelOutput(found.model_id, 0)])
    metrics = [Metric(key, value, 0, 0, model_id=found.model_id) for key, value in headlines.items()]
    client.log_batch(run, metrics)


def delete_models(client: MlflowClient, experiment: str, run: str) -> None:
    """Delete the models of a run."""
    query = f"source_run_id = '{run}'"
    for model in client.search_logged_models([experiment], query, max_results=PAGE):
        client.delete_logged_model(model.model_id)
