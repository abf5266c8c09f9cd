"""Time evaluation and streaming at ImageNet's size: 50,000 x 5 x 1000 logits, and images per second from a folder."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from common import random_logits
from PIL import Image

import ztw
from ztw.data.prepare import prepare_dataset
from ztw.data.splits import load_split
from ztw.evaluation.curves import Costs, SplitPredictions
from ztw.evaluation.methods import evaluate_method
from ztw.study.settings import EvaluationSettings, FolderSettings, MethodSettings

METHOD = MethodSettings(ics="independent", rule="max_softmax")
EVALUATION = EvaluationSettings(allowed_losses=(0.01,))


def peak_gib() -> float:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def test_evaluation(benchmark):
    """Time a whole evaluation: sweeps of both splits, calibration, temperatures, two protocols."""
    logits, labels = random_logits(5, 50_000, 1000)
    half = (
        SplitPredictions(logits[:, :25_000], labels[:25_000]),
        SplitPredictions(logits[:, 25_000:], labels[25_000:]),
    )
    costs = {"ztw": Costs(torch.arange(1.0, 6.0).double(), 5.0)}
    benchmark.group = "ImageNet's size: evaluation of 50,000 x 5 x 1000 logits"
    benchmark.extra_info["what"] = "ztw evaluate_method, a method, both protocols"
    run = lambda: evaluate_method(*half, costs, METHOD, EVALUATION)  # noqa: E731
    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["peak_gib"] = round(peak_gib(), 2)


def test_sweep(benchmark):
    logits, labels = random_logits(5, 50_000, 1000)
    benchmark.group = "ImageNet's size: evaluation of 50,000 x 5 x 1000 logits"
    benchmark.extra_info["what"] = "ztw.sweep, its own grid"
    benchmark.pedantic(lambda: ztw.sweep(logits, labels, torch.arange(1.0, 6.0), "max_softmax"), rounds=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write 400 JPEGs of ImageNet's usual size."""
    place = tmp_path_factory.mktemp("streamed")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 400), ("test", 8)):
        for index in range(count):
            target = place / split / str(index % 4)
            target.mkdir(parents=True, exist_ok=True)
            coarse = torch.randint(256, (24, 32, 3), generator=generator).byte().numpy()
            image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
            image.save(target / f"{index:04}.jpg", quality=90)
    return place


@pytest.mark.parametrize("workers", [0, 2])
def test_images_a_second(benchmark, folder, tmp_path, workers):
    from dataclasses import replace

    record = prepare_dataset("s", tmp_path, {"s": FolderSettings(path=str(folder), size=224, stream=True)})
    data = replace(load_split(record, "train"), workers=workers)
    benchmark.group = "ImageNet's size: images streamed for training, 500 x 375 JPEG to 224 x 224"
    benchmark.extra_info.update(what=f"{workers} workers, 400 images", images=len(data))
    run = lambda: sum(len(y) for _, y in data.batches(64, torch.Generator().manual_seed(0), True))  # noqa: E731
    assert benchmark.pedantic(run, rounds=2) == len(data)
