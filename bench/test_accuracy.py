"""Compare the accuracy of ztw's training with a plain loop in float32, from equal weights, for equal epochs."""

from __future__ import annotations

import statistics

import pytest
import torch
import torch.nn.functional as F
from common import OneByOne, waited
from torch.utils.data import DataLoader

import ztw
from ztw.data.decoded import ImageSet
from ztw.data.prepare import prepare_dataset
from ztw.data.splits import load_split
from ztw.device import Compute, pick_device, resolve_precision
from ztw.files import data_root
from ztw.training.recipe import Recipe
from ztw.training.separate import train_backbone

SEEDS = range(5)
IMAGES, BATCH, EPOCHS, LR, DECAY = 8000, 64, 2, 0.1, 5e-4


@pytest.fixture(scope="module")
def splits() -> tuple[ImageSet, ImageSet]:
    """Return 8000 training images of Fashion-MNIST, and its test split."""
    prepared = prepare_dataset("fashion_mnist", data_root()) | {"crop_padding": 0}
    train, test = (load_split(prepared, split) for split in ("train", "test"))
    assert isinstance(train, ImageSet)
    assert isinstance(test, ImageSet)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:IMAGES]
    return train.take(chosen), test


def plain(backbone: ztw.Backbone, data: ImageSet, seed: int) -> None:
    torch.manual_seed(seed)
    device = pick_device()
    backbone.to(device)
    optimizer = torch.optim.SGD(backbone.parameters(), LR, 0.9, weight_decay=DECAY)
    loader = DataLoader(OneByOne(data), BATCH, shuffle=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=EPOCHS * len(loader) + 1, pct_start=0.2, cycle_momentum=False
    )
    for _ in range(EPOCHS):
        for batch, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(backbone(batch.to(device)), labels.to(device)).backward()
            optimizer.step()
            schedule.step()
    backbone.eval().cpu()


def fast(backbone: ztw.Backbone, data: ImageSet, seed: int) -> None:
    device = pick_device()
    recipe = Recipe(EPOCHS, BATCH, LR, DECAY, schedule="one_cycle", compute=Compute.on(device))
    train_backbone(backbone.to(device), data.to(device), recipe, seed)
    backbone.cpu()


@torch.inference_mode()
def accuracy(backbone: ztw.Backbone, data: ImageSet) -> float:
    right = sum(
        int((backbone(images).argmax(-1) == labels).sum())
        for images, labels in data.to(torch.device("cpu")).batches(500)
    )
    return 100 * right / len(data)


@pytest.mark.parametrize("train", [plain, fast])
def test_accuracy(benchmark, train, splits):
    found = []

    def all_seeds() -> None:
        for seed in SEEDS:
            torch.manual_seed(seed)
            backbone = ztw.build_backbone("resnet20", num_classes=10, channels=1, size=28)
            train(backbone, splits[0], seed)
            found.append(accuracy(backbone, splits[1]))

    benchmark.group = f"ResNet-20, {IMAGES} images of Fashion-MNIST, {EPOCHS} epochs, {len(SEEDS)} seeds"
    name = (
        "reference: plain loop, fp32"
        if train is plain
        else f"ztw, {resolve_precision('auto', pick_device())}"
    )
    benchmark.extra_info.update(what=name, reference=train is plain)
    benchmark.pedantic(waited(all_seeds), rounds=1)
    benchmark.extra_info.update(
        accuracy_mean=statistics.mean(found), accuracy_sd=statistics.stdev(found), seeds=len(SEEDS)
    )
