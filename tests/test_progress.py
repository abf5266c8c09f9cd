"""Test the progress of a long job, and its estimate of the time left."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

from ztw.errors import ZtwError
from ztw.progress import Note, Progress, clock, job_log, on_screen, reporter


def lines(durations: list[float], total: int) -> list[str]:
    """Return the reported lines when the steps take these seconds."""
    said: list[str] = []
    now = [0.0]
    progress = Progress(total, said.append, lambda: now[0])
    for seconds in durations:
        now[0] += seconds
        progress.step(lambda: "x")
    return said


def test_a_slow_first_step_does_not_count():
    """A training that compiles for a minute, and then takes a second per step."""
    said = lines([60.0] + [1.0] * 20, 1001)
    assert said[0] == "  0 %  x", "nothing is known yet"
    assert "0:16:" in said[3] or "16:" in said[3]
    assert all("left" not in line or line.split("  ")[-1] < "17" for line in said)


def test_even_steps_are_counted_down():
    said = lines([2.0] * 100, 100)
    assert said[9] == f" 10 %  x  {clock(180)} left"
    assert said[-1] == "100 %  x  0:00 left"


def test_the_recent_steps_count():
    """Later steps are slow, as if another process used the machine."""
    said = lines([1.0] * 200 + [10.0] * 100, 1000)
    left = said[-1].split("  ")[-1]
    assert left == f"{clock(7000)} left"


def test_quick_steps_report_few_lines():
    assert len(lines([0.01] * 1000, 1000)) <= 11


def test_a_name_in_another_encoding_can_be_logged(tmp_path):
    """Names that are not UTF-8 have surrogates in Python, which cannot be written as UTF-8."""
    log = tmp_path / "job.log"
    with job_log(log, "prepare_dataset") as report:
        report("skipped caf\udce9.gif")
    assert "skipped caf\\udce9.gif" in log.read_text()


@pytest.mark.parametrize("kind", [ZtwError, KeyError])
def test_a_password_is_neither_in_the_log_nor_on_the_screen(tmp_path, capfd, kind):
    log = tmp_path / "job.log"
    uri = "http://ann:s3cr3t@host"

    def fail():
        with job_log(log, "track_cell") as report:
            report(f"asking {uri}")
            raise kind(f"{uri} is wrong") from ValueError(f"{uri}/path failed")

    with pytest.raises(SystemExit):
        fail()
    for text in (log.read_text(), capfd.readouterr().err):
        assert "http://host is wrong" in text
        assert "s3cr3t" not in text
    assert "ValueError: http://host/path failed" in log.read_text()


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: np.empty(1 << 60, np.uint8), "memory ran out: raise mem_mb of train_ics (set-resources"),
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), "memory ran out: raise mem_mb of train_ics"),
        (lambda: mmap.mmap(-1, 1 << 60), "memory ran out: raise mem_mb of train_ics"),
        (lambda: no_memory_on_the_gpu(), "the GPU's memory ran out: lower batch_size"),
    ],
    ids=["numpy", "torch", "the system", "cuda"],
)
def test_a_job_out_of_memory_names_the_resource_to_raise(tmp_path, ask, said):
    with pytest.raises(SystemExit), job_log(tmp_path / "log", "train_ics"):
        ask()
    errors = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {said}")


def no_memory_on_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_other_errors_are_not_about_memory(tmp_path):
    with pytest.raises(SystemExit), job_log(tmp_path / "log", "train_ics"):
        raise RuntimeError("shapes differ")
    assert "error: RuntimeError: shapes differ (traceback:" in (tmp_path / "log").read_text()


def test_a_note_is_marked_in_the_log(tmp_path):
    with job_log(tmp_path / "log", "prepare_dataset") as report:
        report("decoding")
        report(Note("skipped 3 .gif"))
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:3] == ["progress: started", "progress: decoding", "note: skipped 3 .gif"]


def test_on_screen_lines_and_notes(capsys):
    on_screen("10 %  epoch 1/2")
    on_screen(Note("left out"))
    assert capsys.readouterr().err == "10 %  epoch 1/2\nnote: left out\n"


def test_the_argument_progress_of_public_functions():
    said: list[str] = []
    assert reporter(True) is on_screen
    assert reporter(False) is None
    assert reporter(said.append) == said.append


def test_on_a_terminal_the_last_line_only_stays(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for line in (" 50 %  epoch 1/2", "100 %  epoch 2/2"):
        on_screen(line)
    assert capsys.readouterr().err == "\r\x1b[K 50 %  epoch 1/2\r\x1b[K100 %  epoch 2/2\n"
