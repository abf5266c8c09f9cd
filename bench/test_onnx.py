"""Time early exits in ONNX Runtime, in one graph, against the whole backbone in ONNX Runtime.

Both are exported by `export_onnx` and run by `OnnxRunner`. Each ratio is the median of runs in turn. `macs` of a row is
the real cost of its images, as a share of the backbone's. If no sample leaves early, it includes all heads.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from common import busy_network, side_by_side
from torch import Tensor

import ztw
from ztw.exits.rules import exit_scores

# name -> (arch, side, placement, width of the heads, connection, ensemble); ResNet-50 as in config/imagenet.yaml
NETWORKS = {
    "ResNet-50, 4 ICs": ("torchvision/resnet50", 224, (0, 4, 8, 12), 0.25, "independent", False),
    "ResNet-56, 9 ICs": ("resnet56", 32, "every 3", 1.0, "independent", False),
    "ResNet-56, 27 ICs, ensemble": ("resnet56", 32, "all", 1.0, "cascade_detached", True),
}
SHARES = (0.25, 0.5, 0.75, None)  # shares of the backbone's MACs; None: no sample leaves early
BATCHES = (1, 32)
IMAGES = {32: 64, 224: 32}  # side -> number of images
ROUNDS = {32: 9, 224: 3}  # side -> number of runs in turn


@cache
def prepared(name: str) -> tuple[ztw.EarlyExitNetwork, Tensor, Path, Path]:
    """Return the network, images, the network's file and its backbone's file."""
    arch, side, placement, width, connection, ensemble = NETWORKS[name]
    network = busy_network(ztw.build_backbone(arch, size=side), connection, placement, width=width)
    images = torch.randn(IMAGES[side], 3, side, side, generator=torch.Generator().manual_seed(0))
    if ensemble:
        with torch.no_grad():
            logits = network(images)
        noise = torch.randn(logits.shape[1:], generator=torch.Generator().manual_seed(1))
        labels = (logits.mean(0) + noise).argmax(-1)
        network.ensemble = ztw.fit_ensemble(logits, labels)
    folder = Path(mkdtemp())
    rule = ztw.MaxSoftmax(0.5)
    return (
        network,
        images,
        ztw.export_onnx(network, rule, folder / "exits.onnx"),
        ztw.export_onnx(network.backbone, None, folder / "alone.onnx"),
    )


@cache
def runners(name: str, threads: int) -> tuple[ztw.OnnxRunner, ztw.OnnxRunner]:
    """Return runners of the network and of its backbone alone."""
    _, _, exits, alone = prepared(name)
    return ztw.OnnxRunner(exits, threads, cache=False), ztw.OnnxRunner(alone, threads, cache=False)


def rule_at(share: float | None, logits: Tensor, cost: Tensor, base: float) -> ztw.MaxSoftmax:
    """Return the rule by which these images cost about `share` of the backbone's MACs."""
    if share is None:
        return ztw.MaxSoftmax(2.0)
    values = exit_scores(logits, ztw.MaxSoftmax).unique()
    between = ((values[1:] + values[:-1]) / 2)[values.diff() > 1e-5]
    curve = ztw.sweep(logits, torch.zeros(logits.shape[1]).long(), cost, "max_softmax", between)
    return ztw.MaxSoftmax(float(curve.parameter[(curve.cost / base - share).abs().argmin()]))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NETWORKS)
def test_backbone(benchmark, name, batch, threads):
    _, images, *_ = prepared(name)
    alone, parts = runners(name, threads)[1], images.numpy()
    benchmark.group = f"ONNX Runtime: {name}, batch {batch}, {threads} threads"
    benchmark.extra_info.update(what="reference: the whole backbone in ONNX Runtime", reference=True)
    cut = [parts[start : start + batch] for start in range(0, len(parts), batch)]
    rounds = ROUNDS[images.shape[-1]]
    benchmark.pedantic(lambda: [alone(part) for part in cut], rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NETWORKS)
def test_early_exits(benchmark, name, batch, threads, share):
    network, images, *_ = prepared(name)
    runner, alone = runners(name, threads)
    cost, base, parts = runner.cost, runner.backbone_cost, images.numpy()
    rule = rule_at(share, runner.logits(images), cost, base)
    cut = [parts[start : start + batch] for start in range(0, len(parts), batch)]
    run = lambda: [runner(part, rule) for part in cut]  # noqa: E731
    asked = "nobody leaves" if share is None else f"{share:.0%} of the MACs asked"
    benchmark.group = f"ONNX Runtime: {name}, batch {batch}, {threads} threads"
    rounds = ROUNDS[images.shape[-1]]
    results = benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)
    exits = torch.cat([result.exit_index for result in results])
    benchmark.extra_info.update(
        what=f"early exits, {asked}",
        macs=float(cost[exits].mean()) / base,
        time_in_turn=side_by_side(run, lambda: [alone(part) for part in cut], rounds),
    )
    expected = network.infer(images, rule)
    assert (exits == expected.exit_index).float().mean() > 0.98  # a score may lie on the threshold
