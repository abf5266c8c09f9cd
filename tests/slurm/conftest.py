from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A Slurm of one node; without it, the tests are skipped with the reason."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the daemons may still write
        started = Cluster(Path(folder))
        yield started
        started.stop()
    # the wrapper of a job survives if the job's node goes down, because this Slurm finds processes by their parents
    left = f"{tmp_path_factory.getbasetemp()}/.*--executor slurm-jobstep"
    subprocess.run(["pkill", "-9", "-f", left], check=False)
