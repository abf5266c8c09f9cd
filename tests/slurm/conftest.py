from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster():
    """A Slurm of one node, or the reason why there is none."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # its daemons may write on
        started = Cluster(Path(folder))
        yield started
        started.stop()
