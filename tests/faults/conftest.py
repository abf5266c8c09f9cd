"""The finished small study. Every fault is tried on a copy of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_study import SMALL, run, shown


@pytest.fixture(scope="session")
def finished(data_root: None, tmp_path_factory: pytest.TempPathFactory, tell: Callable[..., None]) -> Path:
    """A folder in which the small study has run without a fault."""
    folder = tmp_path_factory.mktemp("finished")
    began = time.monotonic()
    done = run(folder, SMALL)
    assert done.returncode == 0, shown(done)
    tell("0 none", "one undisturbed run of the study", f"{time.monotonic() - began:.0f} s")
    return folder
