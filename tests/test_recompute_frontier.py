"""Test that published numbers can be recomputed from published logits, and that a changed file is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

import ztw
from ztw.evaluation.prediction_formats import read_file, write_file
from ztw.tensors import write_tensors

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "bench/recompute_frontier.py"
REFERENCE = ROOT / "results/reference"
WITH_LOGITS = sorted({path.relative_to(REFERENCE).parts[0] for path in REFERENCE.glob("*/**/predictions")})


def run(study: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, study], capture_output=True, text=True)


def differing(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if line.endswith("DIFFERS")]


@pytest.mark.parametrize("study", WITH_LOGITS)
def test_published_logits_give_the_published_accuracies(study):
    done = run(REFERENCE / study)
    assert (done.returncode, differing(done)) == (0, []), done.stdout


def test_the_script_has_only_code_of_its_own():
    for path in (SCRIPT, SCRIPT.with_name("from_logits.py")):
        imports = [line for line in path.read_text().splitlines() if line.startswith(("import", "from"))]
        assert not [line for line in imports if "ztw" in line or "torch" in line]


@pytest.fixture
def quick(tmp_path) -> Path:
    """A copy of the published quick study."""
    ignored = shutil.ignore_patterns("figures", "curves", "correct")
    return shutil.copytree(REFERENCE / "quick", tmp_path / "quick", ignore=ignored)


def test_other_logits_are_found(quick):
    path = quick / "fashion_mnist/resnet20/seed0/predictions/independent.safetensors"
    arrays, texts = read_file(path)
    arrays["test_logits"][1] = arrays["test_logits"][1].roll(1, -1)
    write_file(path, arrays, texts)
    done = run(quick)
    assert done.returncode == 1
    assert {line.split()[3] for line in differing(done)} >= {"sdn", "pabee"}
    assert "cascade" not in {line.split()[3] for line in differing(done)}


@pytest.mark.parametrize(
    ("metric", "budget", "exit", "expected"),
    [
        ("accuracy", "0.5", 0, "0.5    early exits          cascade"),
        ("relative_cost", "", 3, "cascade: cost of exit 3"),
    ],
)
def test_another_number_is_found(metric, budget, exit, expected, quick):
    path = quick / "fashion_mnist/resnet20/seed0/metrics/cascade.json"
    saved = json.loads(path.read_text())
    protocol = "held-out" if budget else ""
    (row,) = [
        row
        for row in saved["metrics"]
        if [row[key] for key in ("protocol", "metric", "budget", "exit")] == [protocol, metric, budget, exit]
    ]
    row["value"] += 0.001
    path.write_text(json.dumps(saved))
    done = run(quick)
    (line,) = differing(done)
    assert done.returncode == 1
    assert line.startswith(expected)


# A study whose numbers are computed by hand. Four samples, the same in both splits; labels 0, 0, 1, 1.
LABELS = torch.tensor([0, 0, 1, 1])
BASE = 2000.0
BOTH_RIGHT = [[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0]]
LOGITS = {
    # Exit 1: the second and the fourth sample are wrong. Order of confidences: samples 1, 3, 2, 4.
    "pair": ([[[5.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.5, 0.0]], BOTH_RIGHT], [1000.0, 3000.0]),
    # The fourth sample is wrong
    "small": ([[[5.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.5, 0.0]]], [600.0]),
    "whole": ([BOTH_RIGHT], [2000.0]),
}
METHODS: dict[str, dict[str, str | list[str]]] = {
    "plain": {"ics": "pair"},
    "mean": {"ics": "pair", "ensemble": "uniform"},
    "weighted": {"ics": "pair", "ensemble": "own"},
    "agree": {"ics": "pair", "rule": "patience"},
    "cut": {"ics": "pair", "rule": "fixed_exit"},
    "risk": {"ics": "pair", "thresholds": "risk_controlled"},
    "small": {"static": "small"},
    "whole": {"static": "whole"},
    "both": {"cascade_of": ["small", "whole"]},
}
BUDGETS: list[float | str] = [0.5, 0.75, 1.0, "max"]
# Method -> relative costs of its exits, and accuracies at the budgets. If a share f of the samples leaves at exit 1,
# the cost of `plain` is 1.5 - f and that of `both` is 1.3 - f. An ensemble of 2 classes adds 2 MACs at exit 1 and 4 at
# exit 2, so that 0.5 buys nothing, and 0.75 only f = 1. Exit 2 of `weighted` always predicts class 1.
RESULTS: dict[str, tuple[list[float], list[float | None]]] = {
    "plain": ([0.5, 1.5], [0.5, 0.75, 1.0, 1.0]),
    "mean": ([0.501, 1.503], [None, 0.5, 0.75, 1.0]),
    "weighted": ([0.501, 1.503], [None, 0.5, 0.75, 0.75]),
    "agree": ([0.5, 1.5], [0.5, 0.5, 0.5, 1.0]),
    "cut": ([0.45, 0.9], [0.5, 0.5, 1.0, 1.0]),
    "small": ([0.3], [0.75, 0.75, 0.75, 0.75]),
    "whole": ([1.0], [None, None, 1.0, 1.0]),
    "both": ([0.3, 1.3], [0.75, 1.0, 1.0, 1.0]),
}
FRONTIER = """dataset,arch,unit,budget,kind,method,accuracy,rival,difference
data,net,MACs,0.5,early exits,plain,0.5,small,-0.25
data,net,MACs,0.5,static network,small,0.75,,
data,net,MACs,0.75,early exits,plain,0.75,both,-0.25
data,net,MACs,0.75,cascade of networks,both,1.0,,
data,net,MACs,1.0,early exits,plain,1.0,both,0.0
data,net,MACs,1.0,static network,whole,1.0,,
data,net,MACs,1.0,cascade of networks,both,1.0,,
data,net,MACs,1.0,fixed exit,cut,1.0,,
data,net,time (batch size 1),1.0,early exits,mean,0.1,whole,0.1
"""


def write_study(folder: Path) -> Path:
    """Write the study above as `workflow/publish.py` does."""
    cell = folder / "data/net/seed0"
    for name, (logits, cost) in LOGITS.items():
        splits: list[tuple[Tensor, Tensor]] = [(torch.tensor(logits), LABELS)] * 2
        path = cell / f"predictions/{name}.safetensors"
        ztw.write_predictions(path, *splits, cost=cost, base_cost=BASE, half=True)
    weights = {
        "weight": torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        "bias": torch.tensor([[0.0, 0.0], [0.0, 10.0]]),
    }
    write_tensors(cell / "ensembles/weighted.safetensors", weights)
    (cell / "metrics").mkdir()
    for method, (costs, accuracies) in {**RESULTS, "risk": ([0.5, 1.5], [])}.items():
        rows: list[tuple[str, str, str, int, float | None]] = [("", "", "backbone_macs", 0, BASE)]
        rows += [("", "", "relative_cost", exit, cost) for exit, cost in enumerate(costs, 1)]
        rows += [
            ("held-out", str(budget), "accuracy", 0, value)
            for budget, value in zip(BUDGETS, accuracies, strict=False)
        ]
        keys = ("protocol", "budget", "metric", "exit", "value")
        found = {"metrics": [dict(zip(keys, row, strict=True)) for row in rows]}
        (cell / f"metrics/{method}.json").write_text(json.dumps(found))
    ensembles = {"sets": {"own": {"kind": "geometric"}}}
    study = {"ensembles": ensembles, "methods": METHODS, "evaluation": {"budgets": BUDGETS}}
    (folder / "config.yaml").write_text(yaml.safe_dump(study))
    (folder / "tables").mkdir()
    (folder / "tables/frontier.csv").write_text(FRONTIER)
    return folder


def test_every_kind_of_method_has_the_values_computed_by_hand(tmp_path):
    done = run(write_study(tmp_path))
    assert (done.returncode, differing(done)) == (0, []), done.stdout
    assert "skipped (thresholds risk_controlled): risk\n" in done.stdout
    feasible = sum(value is not None for _, values in RESULTS.values() for value in values)
    assert f"\n{feasible + 8 + 3} values recomputed, 0 differ\n" in done.stdout


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("static network,small,0.75", "static network,small,0.76", "0.5    static network       small"),
        (
            "early exits,plain,0.75",
            "early exits,mean,0.75",
            "0.75   early exits          mean: best is plain",
        ),
        ("both,-0.25", "both,0.25", "0.75   early exits          plain - both"),
    ],
)
def test_another_frontier_is_found(before, after, expected, tmp_path):
    table = write_study(tmp_path) / "tables/frontier.csv"
    table.write_text(table.read_text().replace(before, after))
    done = run(tmp_path)
    assert done.returncode == 1
    assert any(line.startswith(expected) for line in differing(done))


def test_a_study_without_logits_is_an_error(tmp_path):
    shutil.rmtree(write_study(tmp_path) / "data/net/seed0/predictions")
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}: has no logits to recompute; publish them by --logits\n"
    assert run(tmp_path / "data").stderr.startswith(f"error: {tmp_path}/data: no published study")
