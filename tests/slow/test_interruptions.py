"""A run whose screen, terminal or worker ends while it is at work: the tiny study, several times, so minutes."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time

import psutil
import pytest
from tiny_study import command, run, tables, wait_for, works_in

pytestmark = pytest.mark.usefixtures("data_root")


def test_a_run_ends_with_its_screen(tmp_path):
    """`make reproduce | head -1`: nothing computes on, unseen."""
    process = subprocess.Popen(command(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # the first job is done
    process.stdout.close()
    process.wait(300)
    assert not [p for p in psutil.process_iter() if works_in(p, tmp_path)], "nothing is left running"
    assert not (tmp_path / "results/tiny/tables/accuracy_at_budget.csv").exists()
    assert run(tmp_path).returncode == 0, "the same command goes on"


def test_a_closed_terminal_ends_the_run(tmp_path):
    process = subprocess.Popen(command(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(tmp_path / "results/tiny/data/digits/train.json", process)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert not [p for p in psutil.process_iter() if works_in(p, tmp_path)], "nothing is left running"


def test_a_killed_worker_is_told_in_one_line(tmp_path):
    process = subprocess.Popen(
        command(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    killed = None
    while killed is None:
        assert process.poll() is None
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if ".snakemake/scripts" in " ".join(child.cmdline()) and "train_ics" in " ".join(
                    child.cmdline()
                ):
                    killed = child
        time.sleep(0.02)
    wait_for(next(iter((tmp_path / "results/tiny/logs/train_ics").glob("*.log")), tmp_path), process)
    killed.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, output
    assert "train_ics  digits-resnet8-seed" in lines[0]
    assert "killed by SIGKILL" in lines[0]
    assert run(tmp_path).returncode == 0


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_resumed_gives_the_same_tables(finished, tmp_path, sent):
    # a shell's background job is started with SIGINT ignored, which children inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    cell = tmp_path / "results/tiny/digits/resnet8/seed1"
    backbone = cell / "backbone.json"
    wait_for(cell / "ics/independent.json", process)  # the next job's output: the backbone's is finished
    second = run(tmp_path)
    assert second.returncode == 1
    assert f"another run is at work in this folder (process {process.pid})" in second.stdout
    process.send_signal(sent)
    process.communicate(timeout=60)
    made = backbone.stat().st_mtime_ns
    resumed = run(tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert backbone.stat().st_mtime_ns == made, "finished work is kept"
    assert tables(tmp_path) == tables(finished), "byte for byte"
    assert not [p for p in psutil.process_iter() if works_in(p, tmp_path)], "nothing is left running"
