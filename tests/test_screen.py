"""What the screen says of jobs, from their logs."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import pytest
from rich.console import Console

ROOT = Path(__file__).parents[1]
LATER = itertools.count(1)


@pytest.fixture
def screen(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from screen import Screen

    (tmp_path / "snakemake.log").write_text("")
    earlier = tmp_path / "prepare_dataset/earlier.log"
    earlier.parent.mkdir()
    earlier.write_text("progress: started\nerror: of yesterday\n")
    return Screen(Console(file=io.StringIO(), width=200), tmp_path, tmp_path / "snakemake.log")


def write(screen, rule: str, *lines: str) -> None:
    log = screen.logs / rule / "cell.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("\n".join(lines) + "\n")
    later = log.stat().st_mtime_ns + 10_000_000 * next(LATER)
    os.utime(log, ns=(later, later))
    screen.update()


def said(screen) -> list[str]:
    return screen.console.file.getvalue().splitlines()


def test_a_job_is_told_once_when_it_is_done(screen):
    write(screen, "predict", "progress: started", "done: 0:07")
    screen.update()
    assert said(screen) == ["✓ predict  cell  0:07  "]


def test_a_retry_that_ends_well_takes_the_failure_back(screen):
    write(screen, "predict", "progress: started", "error: memory ran out")
    assert screen.failures
    write(screen, "predict", "progress: started")
    write(screen, "predict", "progress: started", "done: 0:07")
    assert said(screen) == ["✓ predict  cell  0:07  "]
    assert not screen.failures
    assert not screen.running


def test_jobs_that_fail_alike_share_a_line(screen):
    for rule in ("predict", "evaluate"):
        write(screen, rule, "progress: started", "error: a.json: altered")
    screen.explain_failure()
    (told,) = [line for line in said(screen) if line.startswith("error:")]
    assert told == "error: predict  cell, evaluate  cell: a.json: altered"


@pytest.mark.parametrize(
    "words", ["died with <Signals.SIGKILL: 9>", "SLURM-job '7' failed, SLURM status is: 'OUT_OF_MEMORY'"]
)
def test_a_killed_job_may_have_run_out_of_memory(screen, words):
    write(screen, "train_ics", "progress: started")
    screen.snakemake_log.write_text(words)
    screen.explain_failure()
    assert "raise mem_mb of train_ics in the profile" in said(screen)[0]
    assert said(screen)[0].endswith("call the same command again")


def test_what_is_handed_over_and_has_not_begun_is_queued(screen):
    words = "".join(f"rule {rule}:\n    log: {screen.logs}/{rule}/cell.log\n" for rule in "abc")
    screen.snakemake_log.write_text(words + "1 of 9 steps (11%) done\n")
    write(screen, "b", "progress: started")
    with screen.console.capture() as shown:
        screen.console.print(screen._picture())
    assert "1 of 9 steps, 2 queued" in shown.get()


def test_what_was_left_out_is_seen_and_once(screen):
    told = ["progress: started", "note: train: skipped 3 .gif", "progress: decoding"]
    write(screen, "prepare_dataset", *told)
    write(screen, "prepare_dataset", *told, "progress: 12 images", "done: 0:01")
    assert [line for line in said(screen) if line[0] != " "] == [
        "! prepare_dataset  cell  train: skipped 3 .gif",
        "✓ prepare_dataset  cell  0:01  12 images",
    ]
