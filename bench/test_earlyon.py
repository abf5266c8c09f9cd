"""ztw against earlyon, which stops a torchvision model with hooks: same weights, heads, images and thresholds.

Reference of each group: earlyon one image at a time, model(image, mode="inference"), its documented path at
batch 1. At larger batches too, as nothing else in earlyon lets each sample of a batch leave at its own exit,
and it is the fastest here: `forward_inference_batched` stops only where the WHOLE batch is confident, which
with samples of mixed difficulty means at the end. It is timed in a row of its own; its answers are then the
last exit's, not those of equal thresholds. staged.py too is for batch 1, and for an nn.Sequential only; a
ResNet rewritten as one took as long as with hooks, within the noise.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from common import side_by_side
from torch import Tensor, nn

import ztw

earlyon = pytest.importorskip("earlyon")
earlyon_models = pytest.importorskip("earlyon.models")

ARCHS = ("resnet18", "resnet50")
BATCHES = (1, 32, 256)
CLASSES = 10
SIZE = 224
ROUNDS = {1: 5, 32: 5, 256: 1}
CALIBRATION = 32  # images that set BatchNorm, heads and threshold
CLEAR = 1e-4  # a confidence nearer the threshold may fall on either side: > in ztw, >= in earlyon
ROUNDING = 1e-3  # of logits between batch sizes, for which oneDNN picks other kernels: 2e-4 with ResNet-50


@dataclass(frozen=True)
class Setting:
    """Both libraries' networks and what each must answer.

    thresholds: on the largest softmax probability, K - 1; logits: float32 (K, N, C) of every exit for the
    images (N, 3, SIZE, SIZE); exits: int64 (N,), where each leaves, the last is K - 1; clear: bool (N,), no
    confidence so near its threshold, and no two classes so near each other, that rounding decides.
    """

    theirs: nn.Module
    ours: ztw.EarlyExitNetwork
    folded: ztw.EarlyExitNetwork
    runner: ztw.OnnxRunner
    images: Tensor
    thresholds: list[float]
    logits: Tensor
    exits: Tensor
    clear: Tensor


def random_images(count: int) -> Tensor:
    """Smooth random pictures, distinct enough for random networks to tell them apart."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    return images.contiguous(memory_format=torch.channels_last)


def all_logits(theirs: nn.Module, images: Tensor) -> Tensor:
    """(K, N, C) of every exit: earlyon's mode "training" computes them all; the network is in eval mode."""
    with torch.inference_mode():
        parts = [torch.stack(theirs(part, mode="training")) for part in images.split(32)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def build_theirs(arch: str, images: Tensor) -> nn.Module:
    """earlyon's network, in eval mode: BatchNorm calibrated, logits centred and of one spread at every exit."""
    torch.manual_seed(0)
    theirs = getattr(earlyon_models, f"{arch}_ee")(CLASSES, pretrained=False)
    theirs = theirs.to(memory_format=torch.channels_last)
    for norm in [module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)]:
        norm.momentum = None  # statistics of exactly these images
    theirs.backbone.train()
    theirs.backbone(images)
    theirs.eval()
    linears = [head.classifier[-1] for head in theirs.exit_heads.values()] + [theirs.backbone.fc]
    for linear, logits in zip(linears, all_logits(theirs, images), strict=True):
        mean = logits.mean(0)
        scale = 1.5 / (logits - mean).std()
        linear.weight.mul_(scale)
        linear.bias.sub_(mean).mul_(scale)
    return theirs


def build_ours(arch: str, theirs: nn.Module) -> ztw.EarlyExitNetwork:
    """ztw's network: a copy of the backbone's weights, and earlyon's own head modules at the same places."""
    backbone = ztw.build_backbone(f"torchvision/{arch}", CLASSES, size=SIZE)
    weights = theirs.backbone.state_dict()
    own = lambda name: name.split(".", 2 if name.startswith("stages.") else 1)[-1]  # noqa: E731
    backbone.load_state_dict({name: weights[own(name)] for name in backbone.state_dict()})
    return ztw.EarlyExitNetwork(
        backbone, list(theirs.exit_heads.values()), places(theirs), "independent"
    ).eval()


def places(theirs: nn.Module) -> tuple[int, ...]:
    """The blocks that earlyon's exits follow: ztw counts blocks where torchvision counts layers of blocks."""
    count, last = 0, {}
    for name, layer in theirs.backbone.named_children():
        if isinstance(layer, nn.Sequential):
            count += len(layer)
            last[name] = count - 1
    return tuple(last[point.layer_name] for point in theirs.config.exit_points)


def halving_thresholds(confidence: Tensor) -> list[float]:
    """Confidence (K - 1, N) -> thresholds (K - 1) that half of the samples reaching an exit pass, between two."""
    thresholds = []
    stays = torch.ones(confidence.shape[1], dtype=torch.bool)
    for scores in confidence:
        ordered = scores[stays].sort().values
        middle = len(ordered) // 2
        thresholds.append(float(ordered[middle - 1 : middle + 1].mean()))
        stays &= scores <= thresholds[-1]
    return thresholds


@cache
def prepared(arch: str) -> Setting:
    """Everything about one architecture; earlyon's estimate of the FLOPs is made here, not in the first run."""
    images = random_images(max(BATCHES))
    theirs = build_theirs(arch, images[:CALIBRATION])
    logits = all_logits(theirs, images)
    confidence = logits[:-1].softmax(-1).amax(-1)
    thresholds = halving_thresholds(confidence[:, :CALIBRATION])
    theirs.config.confidence_thresholds = thresholds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without fvcore the estimate is uniform; it is not used here
        _ = theirs.flops_estimate
    above = confidence - torch.tensor(thresholds)[:, None]
    exits = torch.cat([above > 0, torch.ones(1, len(images), dtype=torch.bool)]).int().argmax(0)
    best = logits.topk(2).values
    clear = (above.abs() > CLEAR).all(0) & (best[..., 0] - best[..., 1] > 2 * ROUNDING).all(0)
    ours = build_ours(arch, theirs)
    path = ztw.export_onnx(ours, ztw.MaxSoftmax(thresholds), Path(mkdtemp(), "network.onnx"))
    runner = ztw.OnnxRunner(path, threads=torch.get_num_threads(), cache=False)
    return Setting(theirs, ours, ztw.fold_batch_norm(ours), runner, images, thresholds, logits, exits, clear)


def one_by_one(theirs: nn.Module, part: Tensor) -> tuple[Tensor, Tensor]:
    """earlyon, each image at its own exit: logits (n, C), exits (n,)."""
    results = [theirs(image, mode="inference") for image in part.split(1)]
    return torch.cat([result.prediction for result in results]), torch.tensor(
        [result.exit_taken % len(theirs.config.head_names) for result in results]  # -1 means the last
    )


def together(theirs: nn.Module, part: Tensor) -> tuple[Tensor, Tensor]:
    """earlyon, all images at the first exit where each is confident: logits (n, C), exits (n,)."""
    result = theirs.forward_inference_batched(part)
    return result.predictions, torch.full((len(part),), result.exit_taken % len(theirs.config.head_names))


def folded(setting: Setting, part: Tensor) -> tuple[Tensor, Tensor]:
    """The same with BatchNorms folded into the convolutions, which earlyon does not offer."""
    result = setting.folded.infer(part, ztw.MaxSoftmax(setting.thresholds))
    return result.logits, result.exit_index


def infer(setting: Setting, part: Tensor) -> tuple[Tensor, Tensor]:
    """ztw, each image at its own exit: logits (n, C), exits (n,)."""
    result = setting.ours.infer(part, ztw.MaxSoftmax(setting.thresholds))
    return result.logits, result.exit_index


def onnx(setting: Setting, part: Tensor) -> tuple[Tensor, Tensor]:
    """The same in ONNX Runtime, for which earlyon has no form."""
    result = setting.runner(part)
    return result.logits, result.exit_index


def timed(benchmark, arch: str, batch: int, run, what: str, reference: bool = False) -> Tensor:
    """Time run(part) over the batches; returns the exits (N,), and checks each one's logits."""
    setting = prepared(arch)
    parts = setting.images[: max(batch, CALIBRATION)].split(batch)
    benchmark.group = f"{arch} {SIZE} px, batch {batch}, earlyon and ztw"
    benchmark.extra_info.update(what=what, reference=reference, arch=arch, batch=batch)
    results = benchmark.pedantic(
        lambda: [run(setting, part) for part in parts], rounds=ROUNDS[batch], warmup_rounds=int(batch < 256)
    )
    logits, exits = (torch.cat(items) for items in zip(*results, strict=True))
    benchmark.extra_info["exits"] = exits.bincount(minlength=len(setting.logits)).tolist()
    expected, clear = setting.logits[exits, torch.arange(len(exits))], setting.clear[: len(exits)]
    torch.testing.assert_close(logits, expected, atol=ROUNDING, rtol=0)
    assert logits.argmax(1)[clear].equal(expected.argmax(1)[clear])
    return exits


def assert_own_exits(setting: Setting, exits: Tensor) -> None:
    """Each clear sample left where its logits say, and samples left everywhere."""
    clear = setting.clear[: len(exits)]
    assert clear.float().mean() > 0.9
    assert exits[clear].equal(setting.exits[: len(exits)][clear])
    assert len(exits.unique()) == len(setting.logits)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("arch", ARCHS)
def test_earlyon(benchmark, arch, batch):
    run = lambda setting, part: one_by_one(setting.theirs, part)  # noqa: E731
    exits = timed(benchmark, arch, batch, run, f"earlyon {earlyon.__version__} (reference)", reference=True)
    assert_own_exits(prepared(arch), exits)


@pytest.mark.parametrize("batch", BATCHES[1:])
@pytest.mark.parametrize("arch", ARCHS)
def test_earlyon_batched(benchmark, arch, batch):
    run = lambda setting, part: together(setting.theirs, part)  # noqa: E731
    timed(benchmark, arch, batch, run, f"earlyon {earlyon.__version__}, the whole batch leaves together")


@pytest.mark.parametrize("run", [infer, folded, onnx])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("arch", ARCHS)
def test_ztw(benchmark, arch, batch, run):
    what = {infer: "ztw infer", folded: "ztw infer, ztw.fold_batch_norm", onnx: "ztw.OnnxRunner"}[run]
    exits = timed(benchmark, arch, batch, run, what)
    setting = prepared(arch)
    assert_own_exits(setting, exits)
    parts = setting.images[: max(batch, CALIBRATION)].split(batch)
    benchmark.extra_info["ahead_in_turn"] = 1 / side_by_side(
        lambda: [run(setting, part) for part in parts],
        lambda: [one_by_one(setting.theirs, part) for part in parts],
        rounds=1 if batch == 256 else 5,
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_same_function(arch):
    """Both compute the same logits at every exit, and leave at the same ones."""
    setting = prepared(arch)
    few = setting.images[:8]
    with torch.inference_mode():
        ours = setting.ours(few)
    torch.testing.assert_close(ours, all_logits(setting.theirs, few), atol=1e-4, rtol=0)
    theirs, own = one_by_one(setting.theirs, few), infer(setting, few)
    clear = setting.clear[:8]
    assert theirs[1][clear].equal(own[1][clear])
    assert theirs[0][clear].argmax(1).equal(own[0][clear].argmax(1))
