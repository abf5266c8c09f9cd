"""Fault 9: images change between two runs. Jobs that depend on them run again, all others do not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tiny_study import SMALL, jobs_done, run, shown

TRAINS = {"train_backbone", "train_network", "train_ics"}
FOLLOWS = {"predict", "fit_ensembles", "evaluate", "compare_methods", "aggregate"}


def image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(seed)).byte()
    Image.fromarray(pixels.numpy()).save(path)


@pytest.fixture(scope="module")
def study(data_root, tmp_path_factory) -> tuple[Path, Path]:
    """Folder and config of a finished study on an image folder."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 80), ("test", 20)):
        for number in range(count):
            image(folder / f"mine/{split}/{number % 2}/{number:03d}.png", number + (split == "test") * 1000)
    config = yaml.safe_load(SMALL.read_text())
    config |= {"datasets": ["mine"], "tracking": "none", "latency": {"batch_sizes": []}}
    config["data"] |= {"image_folders": {"mine": {"path": str(folder / "mine"), "size": 8}}}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(config))
    done = run(folder, file)
    assert done.returncode == 0, shown(done)
    return folder, file


def overwrite(path: Path) -> None:
    """Overwrite an image in place with another of the same size."""
    other = path.with_name("007.png")
    size = path.stat().st_size
    for seed in range(2000, 4000):
        image(other, seed)
        if other.stat().st_size == size:
            path.write_bytes(other.read_bytes())
            break
    image(other, 7)


def add(path: Path) -> None:
    image(path.with_name("999.png"), 999)


def planned(folder: Path, file: Path) -> set[str]:
    """Return the rules that would run."""
    asked = run(folder, file, "--", "-n")
    assert asked.returncode == 0, shown(asked)
    words = [line.split() for line in asked.stdout.splitlines()]
    return {line[1].rstrip(":") for line in words if len(line) == 2 and line[0] in ("rule", "localrule")}


@pytest.mark.parametrize("change", [overwrite, Path.unlink, add], ids=["overwritten", "removed", "added"])
def test_a_training_image_that_changes_trains_again(study, tmp_path, change: Callable, request, tell):
    folder, file = study
    kept = shutil.copytree(folder / "mine", tmp_path / "kept")
    change(folder / "mine/train/1/001.png")
    found = planned(folder, file)
    assert found >= {"prepare_dataset"} | TRAINS | FOLLOWS
    shutil.rmtree(folder / "mine")
    shutil.copytree(kept, folder / "mine")  # keeps the times of the files
    assert not planned(folder, file) - {"all"}, "the same images again: nothing runs"
    tell(
        "9 data changed",
        f"a training image {request.node.callspec.id}",
        f"{len(found - {'all'})} rules run again",
    )


def test_a_test_image_that_changes_trains_nothing_again(study, tell):
    folder, file = study
    weights = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("ics/*.safetensors")}
    assert weights
    table = folder / "results/tiny/tables/metrics.csv"
    before = table.read_bytes()
    image(folder / "mine/test/1/001.png", 5000)
    os.utime(folder / "mine/test/1/001.png")
    done = run(folder, file)
    assert done.returncode == 0, shown(done)
    assert jobs_done(done.stdout) >= {"prepare_dataset"} | FOLLOWS
    assert not jobs_done(done.stdout) & TRAINS
    assert weights == {path: path.stat().st_mtime_ns for path in weights}
    assert table.read_bytes() != before
    tell(
        "9 data changed", "a test image overwritten", "predicted and evaluated again, no training runs again"
    )
