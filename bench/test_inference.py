"""Time `infer` against the backbone alone, at savings of 25, 50 and 75 % of the MACs."""

from __future__ import annotations

import os
from functools import cache

import pytest
import torch
from common import busy_network, side_by_side, waited

import ztw
from ztw.device import Compute, pick_device
from ztw.exits.rules import exit_scores

# With the recipe's heads, which have a convolution, MobileNet's first exit costs 89 % of its MACs. So MobileNet has
# SDN's heads at SDN's blocks.
HEADS = {"resnet56": "conv", "vgg16_bn": "conv", "mobilenet": "pool"}
PLACEMENT = {"resnet56": "all", "vgg16_bn": "all", "mobilenet": (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)}
# (batch size, precision)
CASES = [(1, "fp32"), (32, "fp32"), (256, "fp32"), (256, "bf16")]
NAMES = [f"{size}-{precision}" for size, precision in CASES]
SAVINGS = (0.25, 0.5, 0.75)


@cache
def prepared(arch: str):
    """Return network, images, cost (K,) and cost of the backbone."""
    network = busy_network(ztw.build_backbone(arch), placement=PLACEMENT[arch], head=HEADS[arch])
    network.to(pick_device())
    images = torch.randn(256, 3, 32, 32).to(pick_device(), memory_format=torch.channels_last)
    return network, images, ztw.macs(network), ztw.macs(network.backbone)


def in_batches(images: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Return batches of images, as many as take a few seconds."""
    return images[: {1: 16, 32: 128}.get(size, 256)].split(size)


def describe(benchmark, arch: str, case: tuple[int, str], what: str, **facts) -> None:
    memory = ", freed memory given back" if "FREED_MEMORY_GIVEN_BACK" in os.environ else ""
    benchmark.group = f"{arch}, batch {case[0]}, {case[1]}{memory}"
    benchmark.extra_info.update(what=what, arch=arch, batch=case[0], **facts)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("arch", HEADS)
def test_backbone(benchmark, arch, case):
    network, images, *_ = prepared(arch)
    parts = in_batches(images, case[0])
    describe(benchmark, arch, case, "reference: the backbone alone", reference=True)
    with torch.inference_mode(), Compute(images.device, case[1]).autocast():
        alone = waited(lambda: [network.backbone(part) for part in parts])
        benchmark.pedantic(alone, rounds=7, warmup_rounds=2)


@pytest.mark.parametrize("saving", SAVINGS)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
@pytest.mark.parametrize("arch", HEADS)
def test_infer(benchmark, arch, case, saving):
    network, images, cost, base = prepared(arch)
    parts = in_batches(images, case[0])
    with torch.inference_mode(), Compute(images.device, case[1]).autocast():
        logits = torch.cat([network(part) for part in parts], dim=1).cpu()
        count = logits.shape[1]
        values = exit_scores(logits, ztw.MaxSoftmax).unique()
        # between two scores, because rounding differs between batch sizes
        between = ((values[1:] + values[:-1]) / 2)[values.diff() > 1e-4]
        curve = ztw.sweep(logits, torch.zeros(count).long(), cost, "max_softmax", between)
        index = int((curve.cost / base - (1 - saving)).abs().argmin())
        saved = 1 - float(curve.cost[index]) / base
        rule = ztw.MaxSoftmax(float(curve.parameter[index]))
        describe(benchmark, arch, case, f"infer, saving {saving:.0%} of the MACs asked", saved=saved)
        run = waited(lambda: [network.infer(part, rule) for part in parts])
        alone = waited(lambda: [network.backbone(part) for part in parts])
        results = benchmark.pedantic(run, rounds=5, warmup_rounds=2)
        benchmark.extra_info["share_of_saving_in_time"] = (1 - side_by_side(run, alone)) / saved
    exits = torch.cat([result.exit_index for result in results]).cpu()
    # in bf16, logits depend on the other images of the batch, by more than the distance of the thresholds
    assert float(cost[exits].mean()) / base == pytest.approx(1 - saved, abs=0.02)


@pytest.mark.parametrize("kind", [None, "geometric"])
def test_machinery_when_no_sample_leaves(benchmark, kind):
    """Time what `infer` adds to backbone and heads when no sample leaves early: batch 1, 27 exits."""
    network, images, *_ = prepared("resnet56")
    if kind:
        with torch.inference_mode():
            logits = network(images)
        network.ensemble = ztw.fit_ensemble(logits.clone(), logits.mean(0).argmax(-1).clone(), kind).to(
            images.device
        )
    benchmark.group = "resnet56, batch 1, nobody leaves"
    benchmark.extra_info.update(what=f"infer, ensemble {kind}")
    backbone, parts = network.backbone, images[:16].split(1)
    run = waited(lambda: [network.infer(part, ztw.MaxSoftmax(2.0)) for part in parts])
    plain = waited(lambda: [network.exit_logits(list(backbone.features(part))) for part in parts])
    alone = waited(lambda: [backbone(part) for part in parts])
    benchmark.pedantic(run, rounds=9, warmup_rounds=2)
    # time beyond backbone and heads, as a share of the backbone's time
    beyond = side_by_side(run, plain, 41) - 1
    benchmark.extra_info["machinery_share_of_backbone"] = beyond / side_by_side(alone, plain, 15)
    network.ensemble = None


@pytest.mark.parametrize("heads", [True, False])
def test_nothing_decided(benchmark, heads):
    network, images, *_ = prepared("resnet56")
    backbone, parts = network.backbone, images[:16].split(1)
    benchmark.group = "resnet56, batch 1, nobody leaves"
    what = "reference: backbone and heads, no decisions" if heads else "the backbone alone"
    benchmark.extra_info.update(what=what, reference=heads)
    plain = waited(lambda: [network.exit_logits(list(backbone.features(part))) for part in parts])
    alone = waited(lambda: [backbone(part) for part in parts])
    with torch.inference_mode():
        benchmark.pedantic(plain if heads else alone, rounds=9, warmup_rounds=2)
