from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, why_not

DONE: list[tuple[str, str]] = []  # what was done to a run, and what it lost


@pytest.fixture(scope="session")
def cluster():
    """A Slurm of one node, or the reason why there is none."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder:
        started = Cluster(Path(folder))
        yield started
        started.stop()


@pytest.fixture
def told():
    """Writes a line of the table that is printed at the end."""
    return lambda done, lost: DONE.append((done, lost))


def pytest_terminal_summary(terminalreporter):
    if DONE:
        terminalreporter.section("Slurm: what was done, and what was lost")
        width = max(len(done) for done, _ in DONE)
        for done, lost in DONE:
            terminalreporter.write_line(f"{done:{width}}  {lost}")
