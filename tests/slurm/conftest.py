from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A Slurm of one node, or the reason why there is none."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # its daemons may write on
        started = Cluster(Path(folder))
        yield started
        started.stop()
    # the wrapper of a job whose node went down outlives it: this Slurm tells a job's processes by their parents
    left = f"{tmp_path_factory.getbasetemp()}/.*--executor slurm-jobstep"
    subprocess.run(["pkill", "-9", "-f", left], check=False)
