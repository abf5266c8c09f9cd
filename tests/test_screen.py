"""Test the screen, from Snakemake's events and the jobs' logs."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.tests import TestLogHandlerBase

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "workflow/logger")]
from outcome import main_tables, print_markdown, undelivered  # noqa: E402
from screen import Job, Screen  # noqa: E402
from snakemake_logger_plugin_ztw import LogHandler  # noqa: E402
from time_left import Span, seconds_left  # noqa: E402

from ztw.files import write_json  # noqa: E402
from ztw.progress import DONE, PROGRESS  # noqa: E402

LATER = itertools.count(1)
NUMBERS = {"prepare_dataset": 1, "train_ics": 2, "predict": 3, "evaluate": 4}


class TestPlugin(TestLogHandlerBase):
    """Snakemake's tests of every logger plugin."""

    __test__ = True

    def get_log_handler_cls(self):
        return LogHandler

    def get_log_handler_settings(self):
        return None


def test_an_event_is_one_line_of_json(monkeypatch, tmp_path):
    monkeypatch.setattr(LogHandler, "baseFilename", str(tmp_path / "events.jsonl"))
    plugin = TestPlugin()
    handler = plugin._create_handler()
    handler.emit(plugin._create_event_record(LogEvent.PROGRESS, "two\nlines", done=1, total=2))
    handler.emit(logging.makeLogRecord({"msg": "plain", "levelname": "INFO", "secret": "no field"}))
    assert [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()] == [
        {"event": "progress", "message": "two\nlines", "done": 1, "total": 2},
        {"event": "info", "message": "plain"},
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_stops_no_event_after_it(monkeypatch, capsys):
    monkeypatch.setattr(LogHandler, "baseFilename", "/dev/full")
    TestPlugin()._create_handler().emit(logging.makeLogRecord({"msg": "lost", "levelname": "INFO"}))
    assert "No space left on device" in capsys.readouterr().err


@pytest.fixture
def screen(tmp_path):
    earlier = tmp_path / "prepare_dataset/cell.log"
    earlier.parent.mkdir()
    earlier.write_text("progress: started\nerror: of yesterday\n")
    screen = Screen(Console(file=io.StringIO(), width=200), tmp_path)
    screen.log.write_text("")
    screen.events.write_text("")
    return screen


def tell(screen, event: str, message: str = "", **fields: Any) -> None:
    """Write an event of Snakemake."""
    with screen.events.open("a") as file:
        file.write(json.dumps({"event": event, "message": message, **fields}) + "\n")


def start(screen, rule: str) -> None:
    """Write the event that a job of a rule has started."""
    log = screen.logs / rule / "cell.log"
    tell(screen, "job_info", jobid=NUMBERS[rule], rule_name=rule, log=[str(log)])
    screen.update()


def fail(screen, rule: str, message: str | None = None) -> None:
    tell(screen, "job_error", jobid=NUMBERS[rule], rule_msg=message)
    screen.update()


def write(screen, rule: str, *lines: str) -> None:
    """Write the log of a job, with a new time."""
    log = screen.logs / rule / "cell.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("\n".join(lines) + "\n")
    later = log.stat().st_mtime_ns + 10_000_000 * next(LATER)
    os.utime(log, ns=(later, later))
    screen.update()


def said(screen) -> list[str]:
    return screen.console.file.getvalue().splitlines()


def errors(screen) -> list[str]:
    screen.explain_failure()
    return [line for line in said(screen) if line.startswith("error:")]


def picture(screen) -> str:
    with screen.console.capture() as shown:
        screen.console.print(screen._picture())
    return shown.get()


def test_a_job_is_shown_once_when_it_is_done(screen):
    start(screen, "predict")
    write(screen, "predict", "progress: started", "done: 0:07")
    screen.update()
    assert said(screen) == ["✓ predict  cell  0:07  "]


def test_a_log_of_an_earlier_run_is_ignored(screen):
    tell(screen, "run_info", stats={"prepare_dataset": 1, "total": 1})
    start(screen, "prepare_dataset")
    assert "1 queued" in picture(screen)
    assert errors(screen)[0] != "error: prepare_dataset  cell: of yesterday"


def test_a_successful_retry_removes_the_failure(screen):
    start(screen, "predict")
    write(screen, "predict", "progress: started", "error: memory ran out")
    fail(screen, "predict")
    start(screen, "predict")
    write(screen, "predict", "progress: started")
    write(screen, "predict", "progress: started", "done: 0:07")
    assert said(screen) == ["✓ predict  cell  0:07  "]
    assert "memory ran out" not in errors(screen)[0]


def test_a_retry_that_starts_before_the_failure_was_read_is_followed(screen):
    start(screen, "predict")
    write(screen, "predict", "progress: started", "error: memory ran out")
    start(screen, "predict")
    write(screen, "predict", "progress: started", "done: 0:07")
    assert said(screen) == ["✓ predict  cell  0:07  "]


def test_jobs_that_fail_alike_share_a_line(screen):
    for rule in ("predict", "evaluate"):
        start(screen, rule)
        write(screen, rule, "progress: started", "error: a.json: altered")
    assert errors(screen) == ["error: predict  cell, evaluate  cell: a.json: altered"]


@pytest.mark.parametrize("local", [True, False])
def test_a_killed_job_may_have_run_out_of_memory(screen, local):
    start(screen, "train_ics")
    write(screen, "train_ics", "progress: started")
    if local:
        tell(screen, "error", "Command 'python' died with <Signals.SIGKILL: 9>.")
    fail(screen, "train_ics", None if local else "SLURM-job '7' failed, SLURM status is: 'OUT_OF_MEMORY'")
    (line,) = errors(screen)
    assert "raise mem_mb of train_ics in the profile" in line
    assert line.endswith("run the same command again")


def test_a_job_that_never_started_has_snakemake_s_message(screen):
    start(screen, "train_ics")
    fail(screen, "train_ics", "SLURM sbatch failed:\n no such partition")
    assert errors(screen) == ["error: train_ics  cell: SLURM sbatch failed: no such partition"]


def test_snakemake_s_own_error_is_shown_if_no_job_has_failed(screen):
    screen.log.write_text("usage: ...\nerror: argument --logger: invalid choice\n\n")
    assert errors(screen) == ["error: error: argument --logger: invalid choice"]
    tell(screen, "error", 'WorkflowError in file "Snakefile":\nseeds: is empty')
    screen.update()
    assert errors(screen)[-1] == 'error: WorkflowError in file "Snakefile": seeds: is empty'


def test_an_incomplete_event_is_read_later_or_skipped(screen):
    with screen.events.open("a") as file:
        file.write('{"event": "error", ')
    screen.update()
    with screen.events.open("a") as file:
        file.write('"message": "late"}\n{"event": "err\n')
    screen.update()
    assert screen.errors == ["late"]


def test_submitted_jobs_that_have_not_started_are_queued(screen):
    tell(screen, "run_info", stats={"predict": 2, "train_ics": 3, "evaluate": 3, "all": 1, "total": 9})
    for rule in ("predict", "train_ics", "evaluate"):
        start(screen, rule)
    write(screen, "evaluate", "progress: started", "done: 0:01")
    write(screen, "predict", "progress: started")
    assert "1 of 8 steps, 1 queued" in picture(screen)


def test_a_note_is_shown_once(screen):
    told = ["progress: started", "note: train: skipped 3 .gif", "progress: decoding"]
    start(screen, "prepare_dataset")
    write(screen, "prepare_dataset", *told)
    write(screen, "prepare_dataset", *told, "progress: 12 images", "done: 0:01")
    assert [line for line in said(screen) if line[0] != " "] == [
        "! prepare_dataset  cell  train: skipped 3 .gif",
        "✓ prepare_dataset  cell  0:01  12 images",
    ]


def test_cells_that_are_not_delivered_are_found(tmp_path):
    cell = tmp_path / "digits/torchvision/resnet18"
    write_json(cell / "seed0/runs.json", {"runs": {}})
    write_json(cell / "seed1/runs.json", {"undelivered": "it does not answer"})
    assert undelivered(tmp_path) == {cell / "seed1/runs.json": "it does not answer"}


@pytest.mark.parametrize(("newer", "old"), [(None, True), ("tables", False), ("pipeline.html", True)])
def test_a_report_is_old_if_a_table_is_newer(tmp_path, newer, old):
    from watch import report_is_old

    (tmp_path / "tables").mkdir()
    table, report = tmp_path / "tables/metrics.csv", tmp_path / "pipeline.html"
    assert not report_is_old(tmp_path), "nothing to report"
    table.touch()
    if newer is not None:
        report.touch()
        os.utime(table if newer == "pipeline.html" else report, (2e9, 2e9))
    assert report_is_old(tmp_path) == old


NUMBERS_OF_A_ROW = " | ".join(["**90.9 ± 0.1** ≈", *["91.2 ± 0.2 ≈"] * 4])
TABLE = f"""**the title (protocol held-out)**

| method | 25 % | 50 % | 75 % | 100 % | Max |
|---|---:|---:|---:|---:|---:|
| ztw-arithmetic | {NUMBERS_OF_A_ROW} |

a note
"""  # the longest name and the widest numbers of the quick study with two seeds


def printed(**console: Any) -> list[str]:
    """Print the table to a console; return its lines that are not empty."""
    shown = Console(record=True, file=io.StringIO(), **console)
    print_markdown(shown, TABLE)
    return [line.strip() for line in shown.export_text().splitlines() if line.strip()]


def test_a_log_has_the_whole_table_and_marks_the_best_without_colours():
    title, *_, row, note = printed(width=80)
    assert (title, note) == ("the title (protocol held-out)", "a note")
    assert row.split() == ["ztw-arithmetic", *["*90.9", "±", "0.1", "≈"], *["91.2", "±", "0.2", "≈"] * 4]


def test_a_narrow_terminal_shows_a_table_in_parts():
    lines = printed(width=60, force_terminal=True, color_system="standard")
    assert max(map(len, lines)) <= 60
    rows = [line.split() for line in lines if line.startswith("ztw-arithmetic")]
    assert [number for row in rows for number in row if "." in number] == [
        "90.9",
        "0.1",
        *["91.2", "0.2"] * 4,
    ]
    assert len(rows) == 2


def test_only_the_tables_of_a_protocol_are_shown():
    other = TABLE.replace("held-out", "paper").replace("a note", "another note")
    assert main_tables(f"{TABLE}\n{other}\n{TABLE}", "held-out").split() == (TABLE + TABLE).split()
    assert main_tables(f"{TABLE}\n{other}", "paper").split() == other.split()


def test_notes_of_one_kind_are_counted(screen):
    notes = [f"note: {name} at budget 0.{i}: {i} % of the predictions differ" for i, name in enumerate("abc")]
    start(screen, "predict")
    write(screen, "predict", "progress: started", *notes, "note: other: a kind of its own", "done: 0:01")
    screen.count_notes()
    shown = [line for line in said(screen) if line.startswith("!")]
    assert shown[:2] == [
        "! predict  cell  a at budget 0.0: 0 % of the predictions differ",
        "! predict  cell  other: a kind of its own",
    ]
    assert shown[2].startswith("! 2 more like 'a at budget 0.0: 0 % of the predictions differ'; see ")
    assert len(shown) == 3


def test_time_left_of_jobs_with_known_durations():
    """Two trainings of 100 s and four predictions of 10 s, one after the other; 100 + 10 s are done."""
    counts = {"train_ics": 2, "predict": 4}
    spans = [Span("train_ics", 100, 1), Span("predict", 10, 1)]
    assert seconds_left(counts, spans, 110) == 130
    assert seconds_left(counts, [*spans, Span("train_ics", 50, 0.5)], 160) == 80


def test_time_left_of_parallel_jobs():
    assert seconds_left({"train_ics": 4}, [Span("train_ics", 100, 1)] * 2, 100) == 100


def test_time_left_of_jobs_that_have_not_started():
    """A training takes 20 times as long as a prediction, until the first one tells."""
    spans = [Span("predict", 3, 1), Span("predict", 3, 1)]
    assert seconds_left({"predict": 2, "train_ics": 1}, spans, 6) == 60
    assert seconds_left({"predict": 2, "train_ics": 1}, [*spans, Span("train_ics", 20, 0.1)], 26) == 180


def test_no_time_left_is_told_too_early():
    assert seconds_left({"predict": 2}, [], 5) is None
    assert seconds_left({"predict": 1, "train_ics": 9}, [Span("predict", 1, 1)], 1) is None


def test_a_job_s_span():
    job = Job(Path("log"), "train_ics  cell", PROGRESS, " 42 %  epoch 5/12", started=10.0)
    assert job.span(now=31.0) == Span("train_ics", 21.0, 0.42)
    job.state, job.text, job.ended = DONE, "0:50", 60.0
    assert job.span(now=99.0) == Span("train_ics", 50.0, 1.0)


def test_a_log_says_from_time_to_time_what_is_done(screen, monkeypatch):
    monkeypatch.setattr("screen.OVERALL_INTERVAL", 0.0)
    tell(screen, "run_info", stats={"predict": 2, "total": 2})
    screen.update()
    assert said(screen)[-1].startswith("  0 of 2 steps, 0:0")
