"""The small study all faults are done to, and every figure of them in a table at the end of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_study import SMALL, run, shown

COLUMNS = ("fault", "done", "outcome")
Tell = Callable[[str, str, str], None]
ROWS = pytest.StashKey[list[tuple[str, str, str]]]()


@pytest.fixture(scope="session")
def tell(request: pytest.FixtureRequest) -> Tell:
    """Add a row to the table: (the fault, what was done, what came of it and what was lost)."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda fault, done, outcome: rows.append((fault, done, outcome))


@pytest.fixture(scope="session")
def undisturbed(data_root: None, tmp_path_factory: pytest.TempPathFactory, tell: Tell) -> tuple[Path, float]:
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    rows = sorted(config.stash.get(ROWS, []), key=lambda row: int(row[0].split()[0]))
    if not rows:
        return
    widths = [max(len(row[column]) for row in [COLUMNS, *rows]) for column in range(len(COLUMNS))]
    terminalreporter.section("faults: what was done, what came of it")
    for row in [COLUMNS, tuple("-" * width for width in widths), *rows]:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())
