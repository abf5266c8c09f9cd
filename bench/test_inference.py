"""Early exits that save time: `infer` against the backbone's own inference, at equal savings in MACs."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from common import busy_network, side_by_side

import ztw
from ztw.rules import exit_scores

ARCHS = ("resnet56", "vgg16_bn", "mobilenet")  # MobileNet: no exit lies below 89 % of its MACs
BATCHES = (1, 32, 256)
SAVINGS = (0.25, 0.5, 0.75)


@cache
def prepared(arch: str):
    """(network, images, logits (K, 256, C), cost (K,), base)."""
    network = busy_network(ztw.build_backbone(arch))
    images = torch.randn(256, 3, 32, 32).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        logits = network(images)
    return network, images, logits, ztw.macs(network), ztw.backbone_macs(network.backbone)


def in_batches(images: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """The images to time: as many batches as stay within a few seconds."""
    return images[: {1: 16, 32: 128}.get(size, 256)].split(size)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("arch", ARCHS)
def test_backbone(benchmark, arch, batch):
    network, images, *_ = prepared(arch)
    parts = in_batches(images, batch)
    benchmark.group = f"{arch}, batch {batch}"
    benchmark.extra_info.update(what="reference: the backbone alone", reference=True, arch=arch, batch=batch)
    with torch.inference_mode():
        benchmark.pedantic(lambda: [network.backbone(part) for part in parts], rounds=7, warmup_rounds=2)


@pytest.mark.parametrize("saving", SAVINGS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("arch", ARCHS)
def test_infer(benchmark, arch, batch, saving):
    network, images, logits, cost, base = prepared(arch)
    parts = in_batches(images, batch)
    count = sum(len(part) for part in parts)
    values = exit_scores(logits[:, :count], ztw.MaxSoftmax).unique()
    # between two scores, because rounding differs between batch sizes
    between = ((values[1:] + values[:-1]) / 2)[values.diff() > 1e-4]
    curve = ztw.sweep(logits[:, :count], torch.zeros(count).long(), cost, "max_softmax", between)
    index = int((curve.cost / base - (1 - saving)).abs().argmin())
    rule = ztw.MaxSoftmax(float(curve.parameter[index]))
    benchmark.group = f"{arch}, batch {batch}"
    benchmark.extra_info.update(
        what=f"infer, saving {saving:.0%} of the MACs asked",
        saved=1 - float(curve.cost[index]) / base,
        arch=arch,
        batch=batch,
    )
    run = lambda: [network.infer(part, rule) for part in parts]  # noqa: E731
    results = benchmark.pedantic(run, rounds=5, warmup_rounds=2)
    alone = lambda: [network.backbone(part) for part in parts]  # noqa: E731
    saved = benchmark.extra_info["saved"]
    benchmark.extra_info["share_of_saving_in_time"] = (1 - side_by_side(run, alone)) / saved
    exits = torch.cat([result.exit_index for result in results])
    assert float(cost[exits].mean()) / base == pytest.approx(float(curve.cost[index]) / base, abs=0.02)


@pytest.mark.parametrize("kind", [None, "geometric"])
def test_machinery_when_nobody_leaves(benchmark, kind):
    """Batch 1, 27 exits: everything but what the backbone and the heads compute themselves."""
    network, images, logits, *_ = prepared("resnet56")
    labels = torch.arange(256) % 10
    network.ensemble = ztw.fit_ensemble(logits.clone(), labels, kind) if kind else None
    benchmark.group = "resnet56, batch 1, nobody leaves"
    benchmark.extra_info.update(what=f"infer, ensemble {kind}")
    parts = images[:16].split(1)
    benchmark.pedantic(
        lambda: [network.infer(part, ztw.MaxSoftmax(2.0)) for part in parts], rounds=9, warmup_rounds=2
    )
    network.ensemble = None


def test_heads_alone(benchmark):
    network, images, *_ = prepared("resnet56")
    benchmark.group = "resnet56, batch 1, nobody leaves"
    benchmark.extra_info.update(what="reference: backbone and heads, no decisions", reference=True)
    parts = images[:16].split(1)
    with torch.inference_mode():
        benchmark.pedantic(
            lambda: [network.exit_logits(list(network.backbone.features(part))) for part in parts],
            rounds=9,
            warmup_rounds=2,
        )


def test_backbone_alone(benchmark):
    network, images, *_ = prepared("resnet56")
    benchmark.group = "resnet56, batch 1, nobody leaves"
    benchmark.extra_info.update(what="the backbone alone")
    parts = images[:16].split(1)
    with torch.inference_mode():
        benchmark.pedantic(lambda: [network.backbone(part) for part in parts], rounds=9, warmup_rounds=2)
