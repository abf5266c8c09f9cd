"""Test that rounding and marks are the same on the screen, in Markdown and in LaTeX."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from metrics_by_hand import at_budget, result, results
from rich.console import Console

from ztw.reporting.readable import accuracy_text, percent
from ztw.reporting.tables import accuracy_table, write_tables
from ztw.study.settings import EvaluationSettings

WORKFLOW = Path(__file__).parents[2] / "workflow"
DIFFERENCES = "dataset,arch,protocol,budget,first,second,difference,low,high,within_noise,seeds\r\n"
DEVICES = "dataset,arch,seed,part,device,precision,threads,host,kinds\r\n"
DEVICES += "d,a,0,backbone,CPU A,fp32,2,n1,2\r\nd,a,1,backbone,CPU B,bf16,2,n2,2\r\n"
NOTE = (
    "Mixed: computed on 2 kinds of device or precision, on which accuracies can depend: CPU A, fp32 (seed 0);"
    " CPU B, bf16 (seed 1). Which part where: devices.csv."
)


@pytest.fixture
def study(tmp_path) -> Path:
    """The files of a study: two methods of equal printed accuracy, one within noise of the best, one below."""
    accuracies = {"a": 0.9085, "b": 0.9091, "near": 0.9, "far": 0.5}
    found = results(*(result(at_budget("0.5", value, 0.4), method) for method, value in accuracies.items()))
    evaluation = EvaluationSettings(budgets=(0.5,), protocols=("held-out",))
    files = [str(tmp_path / f"tables/accuracy_at_budget.{kind}") for kind in ("csv", "md", "tex")]
    noise = {("d", "a", "held-out", "0.5", "near", "b")}
    notes = {("d", "a"): NOTE}
    write_tables(accuracy_table(found, list(accuracies), evaluation), noise, notes, *files)
    (tmp_path / "tables/devices.csv").write_text(DEVICES)
    line = "d,a,held-out,0.5,b,near,0.009100,-0.001000,0.019000,True,1\r\n"
    (tmp_path / "tables/differences.csv").write_text(DIFFERENCES + line)
    return tmp_path


ROOT = Path(__file__).parents[2]


def shown(study: Path, monkeypatch) -> str:
    """Return the output of `make reproduce`, with the escape codes of a terminal."""
    monkeypatch.syspath_prepend(str(WORKFLOW))
    from outcome import show_results

    stream = io.StringIO()
    show_results(Console(file=stream, force_terminal=True, width=100), study, "none", "x.yaml", "held-out")
    return stream.getvalue()


def without_codes(text: str) -> str:
    """Return a text without escape codes, line breaks and padding."""
    return " ".join(re.sub("\x1b\\[[0-9;]*m", "", text).split())


def test_screen_markdown_and_latex_agree(study, monkeypatch):
    screen = shown(study, monkeypatch)
    markdown = (study / "tables/accuracy_at_budget.md").read_text()
    latex = (study / "tables/accuracy_at_budget.tex").read_text()
    for method in ("a", "b"):
        assert f"| {method} | **90.9** |" in markdown, "0.9085 and 0.9091 both print 90.9"
        assert f"{method} & \\textbf{{90.9}} \\\\" in latex
    (a, b, near, far) = [
        line for line in screen.splitlines() if without_codes(line).startswith(("a 9", "b 9", "near", "far"))
    ]
    assert all("\x1b[1m" in line and "90.9" in line for line in (a, b)), "bold"
    assert "| near | 90.0 ≈ |" in markdown
    assert "near & 90.0 $\\approx$ \\\\" in latex
    assert "90.0 ≈" in near
    assert "| far | 50.0 |" in markdown
    assert "far & 50.0 \\\\" in latex
    assert "≈" not in far
    assert not any("\x1b[1m" in line for line in (near, far))
    assert "≈: within noise of the best" in without_codes(screen)
    assert f"| far | 50.0 |\n\n{NOTE}\n" in markdown
    assert NOTE in without_codes(screen)
    assert f"test samples). {NOTE}}}" in latex.replace("\\_", "_").replace("\\%", "%")


def test_the_screen_does_not_wait_for_pandas():
    code = "import sys, screen; sys.exit(any(name in sys.modules for name in ('pandas', 'torch')))"
    path = f"import sys; sys.path[:0] = [{str(WORKFLOW)!r}, {str(WORKFLOW.parent)!r}]; "
    assert subprocess.run([sys.executable, "-c", path + code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.9085, 90.9), ((0.9079 + 0.9091) / 2, 90.9), (0.90849, 90.8), (0.0005, 0.1), (1.0, 100.0), (0.0, 0.0)],
)
def test_a_tie_is_rounded_up_before_and_after_the_csv(share, text):
    kept = float(f"{share:.6f}")
    for value in (share, kept, math.nextafter(share, 0), math.nextafter(share, 2)):
        assert percent(value) == text
    assert math.isnan(percent(math.nan))


def test_the_text_of_an_entry():
    row = {"mean": 0.85, "std": 0.05 * math.sqrt(2), "n": 2}
    assert accuracy_text(row, seeds=2) == "85.0 ± 7.1"
    assert accuracy_text(row, seeds=3) == "85.0 ± 7.1 (n=2)"
    assert accuracy_text({"mean": 0.85, "std": math.nan, "n": 1}, seeds=1) == "85.0"
    assert accuracy_text({"mean": math.nan, "std": math.nan, "n": 0}, seeds=1) == "-"
