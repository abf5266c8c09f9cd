"""Faults 1 and 2: a run, or one of its processes, is killed at any moment, and started again."""

from __future__ import annotations

import base64
import contextlib
import random
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from tiny_study import (
    SMALL,
    command,
    copy_of,
    errors,
    jobs_done,
    run,
    shown,
    tables,
    wait_for,
    worker,
    works_in,
)

pytestmark = pytest.mark.usefixtures("data_root")

KILLS, SEED = 20, 13
EARLY, STARTING = 0.2, 4.0  # this share of kills comes in the first 4 s, before most jobs
JOBS, AMID = 3, 1.5  # the others come at most 1.5 s after one to three jobs have started


def tree(process: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes of a run."""
    with contextlib.suppress(psutil.Error):
        main = psutil.Process(process.pid)
        return [main, *main.children(recursive=True)]
    return []


def unfinished(folder: Path) -> set[str]:
    """Return the outputs of unfinished jobs. Snakemake marks them by files whose names are the paths in base64."""
    marks = folder / ".snakemake/incomplete"
    found = set()
    for mark in marks.rglob("*") if marks.exists() else ():
        if mark.is_file():
            name = "".join(part.removeprefix("@") for part in mark.relative_to(marks).parts)
            found.add(base64.urlsafe_b64decode(name).decode())
    return found


def complete(folder: Path) -> dict[str, int]:
    """Return files of finished jobs -> time of change."""
    results, incomplete = folder / "results/tiny", unfinished(folder)
    kept = {}
    for path in results.rglob("*") if results.exists() else ():
        name = str(path.relative_to(folder))
        ours = path.suffix in (".json", ".safetensors", ".parquet", ".csv", ".png", ".md", ".tex")
        if ours and name not in incomplete and path.name[0] != "." and "mlflow" not in name:
            kept[name] = path.stat().st_mtime_ns
    return kept


def at_work(folder: Path, since: float) -> list[str]:
    """Return the unfinished jobs that have started after `since` (Unix time)."""
    found = folder.rglob("results/tiny/logs/**/*.log")
    logs = [path for path in found if path.name != "snakemake.log" and path.stat().st_mtime > since]
    running = [path for path in logs if not re.search("^(done|error): ", path.read_text(), re.MULTILINE)]
    return sorted(
        str(path.relative_to(folder / "results/tiny/logs").parts[0]).removesuffix(".log") for path in running
    )


def wait_for_jobs(folder: Path, process: subprocess.Popen, count: int) -> None:
    """Wait until `count` jobs have started, or the run has ended."""
    began, since = set[Path](), time.time()
    while process.poll() is None and len(began) < count:
        for log in folder.glob("results/tiny/logs/**/*.log"):
            with contextlib.suppress(FileNotFoundError):
                if log.name != "snakemake.log" and log.stat().st_mtime > since:
                    began.add(log)
        time.sleep(0.05)


def test_killed_at_random_moments_it_ends_with_the_same_tables(finished, tmp_path, tell):
    draw, lost = random.Random(SEED), Counter[str]()
    done_before: dict[str, int] = {}
    again: set[str] = set()
    began, ends = time.monotonic(), 0
    for kill in range(1, KILLS + 1):
        with subprocess.Popen(
            command(SMALL), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            started, since = time.monotonic(), time.time()
            early = draw.random() < EARLY
            if not early:
                wait_for_jobs(tmp_path, process, draw.randint(1, JOBS))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, STARTING if early else AMID))
                ends += 1
            moment = time.monotonic() - started
            for one in tree(process):
                with contextlib.suppress(psutil.Error):
                    one.kill()
        psutil.wait_procs([p for p in psutil.process_iter() if works_in(p, tmp_path)], timeout=10)
        done_now = complete(tmp_path)
        again |= {name for name, when in done_before.items() if done_now.get(name) != when}
        jobs = at_work(tmp_path, since)
        lost.update(jobs)
        files = len(done_now.keys() - done_before.keys())
        tell(
            "1 kill -9 of everything",
            f"{kill}: after {moment:.1f} s",
            f"{files} more files complete; lost: {', '.join(jobs) or 'nothing'}",
        )
        done_before = done_now
    assert sum(lost.values()) >= KILLS // 4, "the kills were to come amid jobs"
    assert done_before, "and to leave something that was complete"
    last = run(tmp_path, SMALL)
    assert last.returncode == 0, shown(last)
    done_now = complete(tmp_path)
    again |= {name for name, when in done_before.items() if done_now.get(name) != when}

    assert not again, "what was complete is computed again"
    assert tables(tmp_path) == tables(finished), "byte for byte"
    assert not list((tmp_path / "results").rglob(".*.[0-9]*")), "half-written files are cleared away"
    tell(
        "1 kill -9 of everything",
        f"{KILLS} kills, then to its end: {time.monotonic() - began:.0f} s",
        f"same tables; {sum(lost.values())} jobs lost, {len(again)} complete files made again, {ends} had ended",
    )


def test_a_killed_worker_is_reported_in_one_line(finished, tmp_path, tell):
    folder = copy_of(finished, tmp_path)
    again = [*command(SMALL), "--", "--forcerun", "train_ics", "--until", "predict"]
    process = subprocess.Popen(again, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    worker(process, "train_ics").send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    assert process.returncode != 0
    (line,) = errors(output)
    assert "train_ics  digits-resnet8-seed0" in line
    assert "killed by SIGKILL" in line
    done = run(folder, SMALL, "--", "--until", "predict")
    assert done.returncode == 0, shown(done)
    assert jobs_done(done.stdout) >= {"train_ics", "predict"}
    assert "train_backbone" not in jobs_done(done.stdout)
    tell("2 kill -9 of one worker", "of train_ics", "one line; the next call goes on, the backbone stays")


def test_a_run_ends_with_its_screen(tmp_path, tell):
    """After `make reproduce | head -1`, no process continues."""
    process = subprocess.Popen(command(SMALL), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # the first job is done
    process.stdout.close()
    process.wait(900)
    assert process.stderr is not None
    process.stderr.close()
    assert not [p for p in psutil.process_iter() if works_in(p, tmp_path)], "nothing is left running"
    assert not (tmp_path / "results/tiny/tables/accuracy_at_budget.csv").exists()
    tell("1 the screen ends", "make reproduce | head -1", "nothing computes on")


@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run(tmp_path, sent, tell):
    process = subprocess.Popen(command(SMALL), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(tmp_path / "results/tiny/data/digits/train.json", process)
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not [p for p in psutil.process_iter() if works_in(p, tmp_path)], "nothing is left running"
    tell(f"1 {sent.name}", "to the main process, at work", "nothing is left running")
