"""Fault 7: a job runs out of memory. The error names the resource to raise, and a retry gets more memory."""

from __future__ import annotations

import re
import signal
import subprocess

from tiny_study import SMALL, command, copy_of, worker

RETRIED = ("--", "--forcerun", "predict", "--until", "predict", "--retries", "1")


def test_a_killed_job_names_its_memory_and_its_retry_gets_twice_as_much(finished, tmp_path, tell):
    folder = copy_of(finished, tmp_path)
    process = subprocess.Popen([*command(SMALL), *RETRIED], cwd=folder, stdout=subprocess.PIPE, text=True)
    worker(process, "predict").send_signal(signal.SIGKILL)  # as the kernel does
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert "✓ predict  digits-resnet8-seed0" in output
    words = (folder / "results/tiny/logs/snakemake.log").read_text()
    given = re.findall(r"rule predict:.*?mem_mb=(\d+)", words, re.DOTALL)
    assert given == ["2500", "5000"]
    tell(
        "7 out of memory",
        "a job killed, with --retries 1",
        f"mem_mb {' then '.join(given)}; the retry ends well",
    )


def test_without_a_retry_one_line_says_what_to_raise(finished, tmp_path, tell):
    folder = copy_of(finished, tmp_path)
    process = subprocess.Popen(
        [*command(SMALL), *RETRIED[:-2]], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    worker(process, "predict").send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    assert process.returncode != 0
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert "predict  digits-resnet8-seed0: killed by SIGKILL; if memory ran out" in line
    assert "raise mem_mb of predict in the profile" in line
    tell("7 out of memory", "a job killed, without a retry", "one line names mem_mb of predict")
