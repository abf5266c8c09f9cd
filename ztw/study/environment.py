"""The environment variables that reach the jobs of a study. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

# Variables that would change results without a trace in the tables
SETTINGS = {
    *("SNAKEMAKE_PROFILE", "MATPLOTLIBRC", "MPLBACKEND"),
    *("PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONDEVMODE", "PYTHONSAFEPATH"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),  # precision is a key of the study
    *("GIT_DIR", "GIT_WORK_TREE"),  # results record the commit of this repository
}
# MLflow variables that jobs keep: access to a tracking server. The study's key `tracking` names the server.
ACCESS = re.compile(
    r"MLFLOW_(TRACKING_(USERNAME|PASSWORD|TOKEN|AUTH|AWS_SIGV4|INSECURE_TLS|SERVER_CERT_PATH|CLIENT_CERT_PATH)"
    r"|WORKSPACE|S3_\w+|GCS_\w+|BOTO_\w+|KERBEROS_\w+|MYSQL_SSL_\w+|SQLALCHEMYSTORE_\w+|PYARROW_EXTRA_CONF"
    r"|HTTP_\w+|ALLOW_HTTP_REDIRECTS|\w*TIMEOUT\w*|\w*MULTIPART\w*|DISABLE_TELEMETRY)"
)


def settings_of_others(names: Iterable[str]) -> set[str]:
    """Find the environment variables that could change a study's results from outside its config."""
    return {
        name
        for name in names
        if name in SETTINGS or (name.startswith("MLFLOW_") and not ACCESS.fullmatch(name))
    }


def search_path(root: str, environment: Mapping[str, str], others: bool = True) -> str:
    """Return PYTHONPATH with `root` first. others: whether the user's entries follow."""
    given = environment.get("PYTHONPATH", "").split(os.pathsep) if others else []
    return os.pathsep.join([root, *(path for path in given if path not in ("", root))])
