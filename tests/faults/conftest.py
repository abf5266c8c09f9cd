"""The small study all faults are done to."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_study import SMALL, run, shown


@pytest.fixture(scope="session")
def undisturbed(
    data_root: None, tmp_path_factory: pytest.TempPathFactory, tell: Callable[..., None]
) -> tuple[Path, float]:
    """(folder, seconds) of a run of the small study that nothing happened to."""
    folder = tmp_path_factory.mktemp("finished")
    began = time.monotonic()
    done = run(folder, SMALL)
    assert done.returncode == 0, shown(done)
    took = time.monotonic() - began
    tell("0 none", "one undisturbed run of the study", f"{took:.0f} s")
    return folder, took


@pytest.fixture(scope="session")
def finished(undisturbed: tuple[Path, float]) -> Path:
    """A folder in which the small study has run."""
    return undisturbed[0]
