"""Test every system on every architecture in the real DAG, and the network of each method by `infer`.

`make test-systems` takes minutes; `make test` does not run it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from ztw.data.splits import load_split
from ztw.exits.rules import ExitRule, exit_scores, fit_rule
from ztw.exits.thresholds import at, candidates
from ztw.files import read_json
from ztw.jobs.cell import CellNetworks
from ztw.study.config import check_study, read_config
from ztw.study.layout import Cell, Layout

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "tests/config/systems.yaml"
STUDY = check_study(read_config(CONFIG))
(DATASET,) = STUDY.datasets
CHANCE = 0.1
TRAIN, TEST = 160, 60


def write_digits(folder: Path) -> None:
    """Write the first digits as 32 x 32 PNGs in class folders."""
    digits = load_digits()
    for index in range(TRAIN + TEST):
        split = "train" if index < TRAIN else "test"
        place = folder / split / str(digits.target[index])
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((digits.images[index] * (255 / 16)).astype("uint8"))
        image.resize((32, 32), Image.Resampling.BILINEAR).save(place / f"{index:04}.png")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """The folder of the finished study."""
    folder = tmp_path_factory.mktemp("systems")
    write_digits(folder / DATASET)
    command = [sys.executable, str(ROOT / "workflow/reproduce.py"), str(CONFIG), "--cores", "2"]
    environment = {**os.environ, "ZTW_DATA": str(folder / "data")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "results/systems"


@pytest.mark.parametrize("method", list(STUDY.methods))
@pytest.mark.parametrize("arch", STUDY.archs)
def test_curve_is_sane(study, arch, method):
    cell = study / DATASET / arch / "seed0"
    rows = pd.read_parquet(cell / f"curves/{method}.parquet")
    rows = rows[rows["split"] == "test"]
    shares = rows.filter(like="exit_fraction").to_numpy()
    assert abs(shares.sum(1) - 1).max() < 1e-9
    assert rows["accuracy"].between(0, 1).all()
    assert (rows["cost"] > 0).all()
    metrics = read_json(cell / f"metrics/{method}.json")["metrics"]
    accuracies = [row["value"] for row in metrics if row["metric"] == "accuracy" and not row["budget"]]
    assert len(accuracies) == shares.shape[1]
    # the networks learn so little that only the mean accuracy of all exits is compared with chance
    assert sum(accuracies) / len(accuracies) > CHANCE / 4


def apart(kind: Any, scores: torch.Tensor) -> ExitRule:
    """Return thresholds in the widest gap between each exit's scores; no sample passes if all scores are equal."""
    bounds = []
    for score in scores[:-1]:
        values = score.unique()
        gaps = values.diff()
        middle = float(values[gaps.argmax()] + gaps.max() / 2) if len(gaps) else 0.0
        bounds.append(middle if len(gaps) and gaps.max() > 1e-3 else float(values[-1]) + 1)
    return kind((kind.sign * torch.tensor(bounds, dtype=torch.float64)).tolist())


@pytest.mark.parametrize("method", list(STUDY.methods))
@pytest.mark.parametrize("arch", STUDY.archs)
def test_infer_agrees_with_the_evaluated_logits(study, arch, method):
    """With thresholds chosen on the validation split, samples leave at the exits that the evaluated logits give."""
    own, sets = STUDY.methods[method], STUDY.cells[DATASET, arch].ics.sets
    networks = CellNetworks(Layout(study), Cell(DATASET, arch, 0), sets=sets, methods=STUDY.methods)
    network = networks.of_method(method)
    answers = {split: networks.predictions(network, method, split) for split in ("validation", "test")}
    cost = torch.arange(1.0, network.exits + 1)
    kind = fit_rule(*answers["validation"], own.rule)
    offered = candidates(own.thresholds, *answers["validation"], cost, kind, points=50)
    images = torch.cat([images for images, _ in load_split(networks.record, "test").batches(50)])
    logits, scores = answers["test"][0], exit_scores(answers["test"][0], kind)
    compared = 0
    rules = [
        at(kind, offered, i) for i in range(0, len(offered.parameter), max(1, len(offered.parameter) // 3))
    ]
    if own.rule != "patience":
        rules.append(apart(kind, scores))
    for rule in rules:
        bounds = rule.bounds(network.exits)[:, None]
        # rounding differs between batch sizes, so samples with a score near a bound are left out
        clear = ((scores[:-1] - bounds).abs() > 1e-4).all(0)
        passes = torch.cat([scores[:-1] > bounds, torch.ones(1, len(images), dtype=torch.bool)])
        expected = passes.byte().argmax(0)
        result = network.infer(images, rule)
        compared += int(clear.sum())
        assert torch.equal(result.exit_index[clear], expected[clear])
        if not rule.best_answers:
            picked = logits[expected, torch.arange(len(images))]
            close = 1e-3 * float(logits.abs().max())  # after few steps, MobileNet's logits reach thousands
            torch.testing.assert_close(result.logits[clear], picked[clear], atol=close, rtol=0)
    assert compared >= len(images), "almost every threshold stood on a score"
