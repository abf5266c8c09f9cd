"""Show the runs of a study in MLflow, and print the address of its table of methods.

usage: python workflow/ui.py RESULTS/STUDY PORT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ztw.reporting.mlflow_view import table_address
from ztw.reporting.sqlite_store import prepare
from ztw.reporting.tracking import open_store


def main(study: Path, port: str) -> None:
    """Start the server; it replaces this process."""
    database = study / "mlflow.db"
    if told := prepare(database):
        print(told)
    if not database.exists():
        sys.exit("there are no runs: make reproduce logs them")
    store = {"uri": f"sqlite:///{database}", "experiment": study.name}
    _, experiment = open_store(store)
    print(f"{table_address(port, experiment)}   (Ctrl-C stops MLflow)", flush=True)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    server = ["mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    os.execvp("mlflow", [*server, "--backend-store-uri", store["uri"]])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
