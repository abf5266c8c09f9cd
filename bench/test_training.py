"""Time the training of ResNet-56 at 32 x 32 by ztw against a plain loop.

The plain loop does what the released code does: float32, batch 128, one image at a time through torchvision's
transforms in a DataLoader, and for ICs a second pass over the training set to evaluate them.
"""

from __future__ import annotations

import os
import statistics
import time

import pytest
import torch
import torch.nn.functional as F
from common import OneByOne, waited
from torch.utils.data import DataLoader

import ztw
from ztw.data.decoded import ImageSet
from ztw.device import Compute, pick_device, resolve_precision
from ztw.training.recipe import Recipe
from ztw.training.separate import train_backbone, train_separately

IMAGES = 1024
EPOCH = 50_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def images() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 3, 32, 32), generator=generator).byte()
    return ImageSet(pixels, torch.arange(IMAGES) % 10, 10, MEAN, STD, flip=True, crop_padding=4)


def describe(benchmark, group: str, what: str, **facts) -> None:
    benchmark.group = f"ResNet-56, {group}, an epoch of 50,000"
    benchmark.extra_info.update(what=what, scale=EPOCH / IMAGES, **facts)


def test_plain_backbone(benchmark):
    describe(benchmark, "backbone", "reference: plain loop, fp32, batch 128", reference=True)
    device = pick_device()
    backbone = ztw.build_backbone("resnet56").to(device, memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(backbone.parameters(), 0.1, 0.9, weight_decay=1e-4)

    def epoch() -> None:
        for batch, labels in DataLoader(OneByOne(images()), 128, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(backbone(batch.to(device)), labels.to(device)).backward()
            optimizer.step()

    benchmark.pedantic(waited(epoch), rounds=2)


@pytest.mark.parametrize("batch", [128, 512])
def test_backbone(benchmark, batch):
    device = pick_device()
    precision = resolve_precision("auto", device)
    describe(benchmark, "backbone", f"ztw, {precision}, batch {batch}")
    backbone = ztw.build_backbone("resnet56").to(device)
    recipe = Recipe(1, batch, 0.1, 1e-4, compute=Compute(device, precision))
    train = waited(lambda: train_backbone(backbone, images().to(device), recipe, 0))
    benchmark.pedantic(train, rounds=3, warmup_rounds=1)
    operations = 3 * 2 * ztw.macs(backbone) * IMAGES / benchmark.stats.stats.median
    benchmark.extra_info["share_of_a_matrix_product"] = operations / matrix_product(device, precision)


@pytest.mark.parametrize("arch", ["resnet56", "vgg16_bn", "mobilenet"])
def test_memory_kept(benchmark, arch):
    """Time training with kept memory (`ztw.device.keep_freed_memory`). The reference is another process (Makefile)."""
    given_back = "FREED_MEMORY_GIVEN_BACK" in os.environ
    benchmark.group = f"{arch}, backbone: is freed memory kept? An epoch of 50,000"
    what = "reference: freed memory given back" if given_back else "freed memory kept"
    benchmark.extra_info.update(what=what, reference=given_back, scale=EPOCH / 512)
    device = pick_device()
    backbone = ztw.build_backbone(arch).to(device)
    recipe = Recipe(0.5, 128, 0.01, 1e-4, compute=Compute.on(device))
    train = waited(lambda: train_backbone(backbone, images().to(device), recipe, 0))
    benchmark.pedantic(train, rounds=5, warmup_rounds=1)


def test_compiled(benchmark, tmp_path, monkeypatch):
    """Measure the time per epoch with and without torch.compile, and the time to compile."""
    device = pick_device()
    precision = resolve_precision("auto", device)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    backbone = ztw.build_backbone("resnet56").to(device)
    found = {}

    def train() -> None:
        for compile in (False, True):
            recipe = Recipe(5, 128, 0.1, 1e-4, compute=Compute(device, precision), compile=compile)
            history = train_backbone(backbone, images().to(device), recipe, 0)
            found[compile] = [float(epoch["seconds"]) for epoch in history]

    benchmark.group = "ResNet-56, backbone: does torch.compile pay?"
    benchmark.extra_info["what"] = f"{precision}, batch 128, five epochs of {IMAGES} images without and with"
    benchmark.pedantic(train, rounds=1)
    for compile, seconds in found.items():
        name = "compiled" if compile else "eager"
        benchmark.extra_info[f"{name}_epoch_of_50000_s"] = EPOCH / IMAGES * statistics.median(seconds[1:])
    benchmark.extra_info["compiling_s"] = found[True][0] - statistics.median(found[True][1:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_captured(benchmark):
    """Measure the time per epoch with and without a captured step (`ztw.training.cuda_graph`) on a GPU."""
    device = pick_device()
    precision = resolve_precision("auto", device)
    backbone = ztw.build_backbone("resnet56").to(device)
    networks = [
        ztw.build_network(backbone, connection)
        for connection in ("independent", "cascade", "cascade_detached")
    ]
    found = {}

    def train() -> None:
        for cuda_graph in (False, True):
            recipe = Recipe(5, 128, 0.01, 1e-4, compute=Compute(device, precision), cuda_graph=cuda_graph)
            backbone.requires_grad_(True)
            found["backbone", cuda_graph] = train_backbone(backbone, images().to(device), recipe, 0)
            found["ics", cuda_graph] = train_separately(networks, images().to(device), recipe, 0)[0]

    benchmark.group = "ResNet-56: does a captured step pay on a GPU?"
    benchmark.extra_info["what"] = f"{precision}, batch 128, five epochs of {IMAGES} images without and with"
    benchmark.pedantic(train, rounds=1)
    for (what, cuda_graph), history in found.items():
        name = f"{what}_{'captured' if cuda_graph else 'usual'}"
        seconds = statistics.median(float(epoch["seconds"]) for epoch in history[1:])
        benchmark.extra_info[f"{name}_epoch_of_50000_s"] = EPOCH / IMAGES * seconds


def matrix_product(device: torch.device, precision: str) -> float:
    """Return the operations per second of a large matrix product: the machine's peak."""
    side, number = 4096, torch.bfloat16 if precision == "bf16" else torch.float32
    one = torch.randn(side, side, device=device, dtype=number)
    product = waited(lambda: one @ one)
    product()
    started = time.perf_counter()
    for _ in range(3):
        product()
    return 3 * 2 * side**3 / (time.perf_counter() - started)


def test_plain_ics(benchmark):
    """Train two networks, SDN and ZTW, one after the other, each with a pass to evaluate the training set."""
    describe(
        benchmark, "ICs of sdn and ztw", "reference: plain loop, fp32, batch 128, evaluated", reference=True
    )
    device = pick_device()
    backbone = ztw.build_backbone("resnet56").to(device, memory_format=torch.contiguous_format).eval()
    networks = [
        ztw.build_network(backbone, connection).to(device)
        for connection in ("independent", "cascade_detached")
    ]

    def epoch() -> None:
        for network in networks:
            optimizer = torch.optim.Adam(network.heads.parameters(), 1e-3)
            for batch, labels in DataLoader(OneByOne(images()), 128, shuffle=True):
                batch, labels = batch.to(device), labels.to(device)
                with torch.no_grad():
                    features = list(backbone.features(batch))
                optimizer.zero_grad()
                sum(F.cross_entropy(ic, labels) for ic in network.ic_logits(features)).backward()
                optimizer.step()
            with torch.no_grad():
                for batch, _ in DataLoader(OneByOne(images()), 128):
                    network(batch.to(device))

    benchmark.pedantic(waited(epoch), rounds=1)


def test_ics(benchmark):
    device = pick_device()
    precision = resolve_precision("auto", device)
    describe(benchmark, "ICs of sdn and ztw", f"ztw, {precision}, batch 128, both in one pass")
    backbone = ztw.build_backbone("resnet56").to(device).eval()
    networks = [
        ztw.build_network(backbone, connection).to(device)
        for connection in ("independent", "cascade_detached")
    ]
    recipe = Recipe(1, 128, 1e-3, 1e-4, compute=Compute(device, precision), optimizer="adam")
    train = waited(lambda: train_separately(networks, images().to(device), recipe, 0))
    benchmark.pedantic(train, rounds=2, warmup_rounds=1)
