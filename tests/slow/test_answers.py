"""What the screen says beside the jobs: Snakemake's answers, and on a terminal with plain characters only."""

from __future__ import annotations

import os
import subprocess

import pytest
from tiny_study import TINY, command, run

pytestmark = pytest.mark.usefixtures("data_root")


@pytest.mark.parametrize("question", [["-n"], ["--dry-run"], ["--rulegraph", "mermaid-js"], ["--list"]])
def test_what_snakemake_is_asked_it_answers_on_the_screen(tmp_path, question):
    asked = run(tmp_path, TINY, "--", *question)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert "train_backbone" in asked.stdout
    assert not (tmp_path / "results/tiny").exists(), "nothing was computed"


def test_a_terminal_with_plain_characters_only(finished):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command(), cwd=finished, env=environment, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("ascii")
    assert "+-" in text
    assert "?" not in text
