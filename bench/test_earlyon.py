"""Compare ztw with earlyon, which adds exits to a torchvision model by hooks.

Weights, heads, images and thresholds are the same. The reference of each group is earlyon's documented way for
batch 1, model(image, mode="inference"), one image at a time. It is the reference for larger batches, too: nothing else
in earlyon lets each sample of a batch leave at its own exit. `forward_inference_batched` has a row of its own. It stops
only where the whole batch is confident; with samples of mixed difficulty, this is the last exit. earlyon's staged.py is
for batch 1 and nn.Sequential only. A ResNet written as an nn.Sequential took as long as with hooks.
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
CALIBRATION = 32  # number of images on which BatchNorm, heads and thresholds are calibrated
CLEAR = 1e-4  # a confidence nearer to the threshold is ambiguous: ztw compares with >, earlyon with >=
ROUNDING = 1e-3  # tolerance of logits between batch sizes: oneDNN uses other kernels (2e-4 with ResNet-50)


@dataclass(frozen=True)
class Setting:
    """Networks of both libraries, images, and the expected predictions.

    thresholds: K - 1, on the largest softmax probability. logits: float32 (K, N, C) of every exit for the images
    (N, 3, SIZE, SIZE). exits: int64 (N,), the exit where each image leaves, from 0. clear: bool (N,), False if rounding
    can change an image's exit or class.
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
    """Make smooth random images, different enough for networks with random weights."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    return images.contiguous(memory_format=torch.channels_last)


def all_logits(theirs: nn.Module, images: Tensor) -> Tensor:
    """Compute the logits (K, N, C) of every exit in eval mode. earlyon's mode "training" returns all exits."""
    with torch.inference_mode():
        parts = [torch.stack(theirs(part, mode="training")) for part in images.split(32)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def build_theirs(arch: str, images: Tensor) -> nn.Module:
    """Build earlyon's network in eval mode: BatchNorm calibrated, logits of every exit with mean 0 and equal spread."""
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
    """Build ztw's network, with a copy of the backbone's weights, and earlyon's head modules at the same blocks."""
    backbone = ztw.build_backbone(f"torchvision/{arch}", CLASSES, size=SIZE)
    weights = theirs.backbone.state_dict()
    own = lambda name: name.split(".", 2 if name.startswith("stages.") else 1)[-1]  # noqa: E731
    backbone.load_state_dict({name: weights[own(name)] for name in backbone.state_dict()})
    return ztw.EarlyExitNetwork(
        backbone, list(theirs.exit_heads.values()), places(theirs), "independent"
    ).eval()


def places(theirs: nn.Module) -> tuple[int, ...]:
    """Return the blocks before earlyon's exits. ztw numbers blocks, torchvision numbers layers of several blocks."""
    count, last = 0, {}
    for name, layer in theirs.backbone.named_children():
        if isinstance(layer, nn.Sequential):
            count += len(layer)
            last[name] = count - 1
    return tuple(last[point.layer_name] for point in theirs.config.exit_points)


def halving_thresholds(confidence: Tensor) -> list[float]:
    """Return K - 1 thresholds for confidences (K - 1, N): the median of the samples that reach an exit."""
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
    """Prepare one architecture. earlyon's estimate of the FLOPs is computed here, not in the first timed run."""
    images = random_images(max(BATCHES))
    theirs = build_theirs(arch, images[:CALIBRATION])
    logits = all_logits(theirs, images)
    confidence = logits[:-1].softmax(-1).amax(-1)
    thresholds = halving_thresholds(confidence[:, :CALIBRATION])
    theirs.config.confidence_thresholds = thresholds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the estimate is inexact without fvcore, but not used here
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
    """Run earlyon, each image to its own exit; return logits (n, C) and exits (n,)."""
    results = [theirs(image, mode="inference") for image in part.split(1)]
    return torch.cat([result.prediction for result in results]), torch.tensor(
        [result.exit_taken % len(theirs.config.head_names) for result in results]  # -1 means the last
    )


def together(theirs: nn.Module, part: Tensor) -> tuple[Tensor, Tensor]:
    """Run earlyon, all images to the first exit where all are confident; return logits (n, C) and exits (n,)."""
    result = theirs.forward_inference_batched(part)
    return result.predictions, torch.full((len(part),), result.exit_taken % len(theirs.config.head_names))


def folded(setting: Setting, part: Tensor) -> tuple[Tensor, Tensor]:
    """Run ztw with BatchNorms folded into the convolutions, which earlyon cannot do."""
    result = setting.folded.infer(part, ztw.MaxSoftmax(setting.thresholds))
    return result.logits, result.exit_index


def infer(setting: Setting, part: Tensor) -> tuple[Tensor, Tensor]:
    """Run ztw, each image to its own exit; return logits (n, C) and exits (n,)."""
    result = setting.ours.infer(part, ztw.MaxSoftmax(setting.thresholds))
    return result.logits, result.exit_index


def onnx(setting: Setting, part: Tensor) -> tuple[Tensor, Tensor]:
    """Run ztw in ONNX Runtime, to which earlyon cannot export."""
    result = setting.runner(part)
    return result.logits, result.exit_index


def timed(benchmark, arch: str, batch: int, run, what: str, reference: bool = False) -> Tensor:
    """Time run(part) over the batches, check the logits, and return the exits (N,)."""
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
    """Check that each clear sample left at the expected exit, and that samples left at every exit."""
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
    """Both compute the same logits at every exit, and samples leave at the same exits."""
    setting = prepared(arch)
    few = setting.images[:8]
    with torch.inference_mode():
        ours = setting.ours(few)
    torch.testing.assert_close(ours, all_logits(setting.theirs, few), atol=1e-4, rtol=0)
    theirs, own = one_by_one(setting.theirs, few), infer(setting, few)
    clear = setting.clear[:8]
    assert theirs[1][clear].equal(own[1][clear])
    assert theirs[0][clear].argmax(1).equal(own[0][clear].argmax(1))
