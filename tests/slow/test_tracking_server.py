"""Test a real tracking server, started by `make mlflow-server`: a hundred parallel cells, and runs logged later."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from tiny_study import ROOT, changed_config, copy_of, run, tables

from ztw.files import read_json, write_json
from ztw.reporting.tracking import CellResults, log_cell, read_copies, start_store
from ztw.study.layout import Cell

pytestmark = [
    pytest.mark.usefixtures("data_root"),
    pytest.mark.filterwarnings("default"),  # MLflow's own dependencies warn
]


@contextlib.contextmanager
def tracking_server(folder: Path, port: int) -> Iterator[str]:
    """Run `make mlflow-server` in a folder; yield the server's URI."""
    make = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", "mlflow-server", f"PORT={port}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        make, cwd=folder, env={**os.environ, "PATH": path, "HOST": "example.org"}, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            assert process.poll() is None, "the server ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=1):
                break
            time.sleep(0.1)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port: int) -> set[str]:
    """Return the addresses at which a server listens on a port."""
    found = [(tuple(one.laddr), one.status) for one in psutil.net_connections("inet")]
    return {str(place[0]) for place, status in found if status == "LISTEN" and place[1] == port}


def test_a_hundred_cells_at_once_lose_nothing(tmp_path, port):
    rows: list[dict[str, Any]] = [
        {"protocol": "", "budget": "", "exit": exit, "metric": "accuracy", "value": exit / 64}
        for exit in range(1, 21)
    ]
    cells = [Cell("digits", "resnet8", seed) for seed in range(100)]
    for cell in cells:
        facts = {"dataset": cell.dataset, "arch": cell.arch, "seed": cell.seed}
        write_json(tmp_path / f"{cell.seed}/backbone.json", facts)
        scaled = [{**row, "value": row["value"] + cell.seed} for row in rows]
        write_json(tmp_path / f"{cell.seed}/sdn.json", {**facts, "method": "sdn", "metrics": scaled})
    with tracking_server(tmp_path, port) as uri:
        assert listening(port) == {"127.0.0.1"}
        store = start_store(uri, "study", tmp_path)

        def log(cell: Cell) -> dict:
            files = {
                kind: [tmp_path / f"{cell.seed}/{name}.json"]
                for kind, name in (("backbone", "backbone"), ("method", "sdn"))
            }
            return log_cell(store, CellResults(cell, "v", files))["runs"]

        started = time.monotonic()
        with ThreadPoolExecutor(len(cells)) as pool:
            runs = list(pool.map(log, cells))
        print(f"100 cells, 300 runs, {time.monotonic() - started:.1f} s")
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("study")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], max_results=1000)
        written = {run for cell in runs for kind in cell.values() for run in kind.values()}
        assert len(written) == 300
        assert {run.info.run_id for run in found} == written, "none lost, none twice"
        assert {run.info.status for run in found} == {"FINISHED"}
        files = [tmp_path / f"{cell.seed}/sdn.json" for cell in cells]
        started = time.monotonic()
        copies, lacking = read_copies(store, files)
        print(f"100 copies read, {time.monotonic() - started:.1f} s")
        assert (copies, lacking) == ({file: read_json(file) for file in files}, {})
        run = runs[7]["method"]["sdn"]
        (copy,) = tmp_path.glob(f"results/mlflow-server/artifacts/**/{run}/artifacts/sdn.json")
        copy.write_text(copy.read_text().replace("0", "1", 1))
        assert read_copies(store, files)[1] == {
            files[7]: f"{files[7]}: the copy in MLflow's run {run} was altered"
        }
        copy.unlink()
        assert read_copies(store, files)[1] == {
            files[7]: f"{files[7]}: its run {run} in MLflow has no copy of the file"
        }


def test_what_was_not_delivered_is_delivered_by_the_same_command(finished, tmp_path, port):
    folder = copy_of(finished, tmp_path)
    config = changed_config(folder, tracking=f"http://127.0.0.1:{port}")
    away = run(folder, config)
    assert away.returncode == 0, away.stdout
    assert "2 cells are not logged yet, the next call logs them: make reproduce CONFIG=" in away.stdout
    assert tables(folder) == tables(finished)
    with tracking_server(tmp_path, port) as uri:
        done = run(folder, config)
        assert done.returncode == 0, done.stdout
        assert "not logged" not in done.stdout
        jobs = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("✓")}
        assert "track_cell" in jobs
        assert not {"train_backbone", "train_ics", "predict", "evaluate"} & jobs
        assert tables(folder) == tables(finished)
        client = MlflowClient(uri)
        for file in folder.rglob("seed*/runs.json"):
            for kind in read_json(file)["runs"].values():
                for written in kind.values():
                    assert client.get_run(written).info.status == "FINISHED"
        again = run(folder, config)
        assert "✓" not in again.stdout, "now it is finished"
    assert run(folder, config).stdout == again.stdout, "and shown without the server"


def test_a_study_ends_without_its_server_and_its_password_is_nowhere(finished, tmp_path):
    folder = copy_of(finished, tmp_path)
    config = changed_config(folder, tracking="http://ann:s3cr3t@127.0.0.1:9")
    for _ in range(2):  # the second call tries again
        done = run(folder, config)
        assert done.returncode == 0, done.stdout
        assert len(re.findall(r"✓ track_cell .*not logged", done.stdout)) == 2
        lines = [line for line in done.stdout.splitlines() if line.startswith("MLflow")]
        assert lines == [
            "MLflow   the MLflow server http://127.0.0.1:9 does not answer ([Errno 111] Connection refused); 2 cells"
            f" are not logged yet, the next call logs them: make reproduce CONFIG={config}"
        ]
        assert "s3cr3t" not in done.stdout + done.stderr
    assert tables(folder) == tables(finished)
    config.unlink()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert folder / "results/tiny/report.html" in files
    assert any(".snakemake/metadata" in str(path) for path in files)
    assert not [path for path in files if b"s3cr3t" in path.read_bytes()]
