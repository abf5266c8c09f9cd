"""Compute the logits of a split once. All metrics are computed from these logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ztw.data.dataset import Data
from ztw.device import ON_CPU, Compute
from ztw.models.network import BOOST_TEMPERATURE, EarlyExitNetwork
from ztw.progress import Progress, Report

ROUNDING = 1e-4  # above the rounding error of logits in float32


@torch.inference_mode()
def predict_networks(
    networks: Sequence[EarlyExitNetwork],
    data: Data,
    batch_size: int = 256,
    compute: Compute = ON_CPU,
    generator: torch.Generator | None = None,
    report: Report | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Compute the logits of every exit of several networks that share one backbone.

    Args:
        data: samples, on the networks' device.
        batch_size: samples per batch.
        compute: device and precision.
        generator: shuffle and augment the samples, as the released recipe does for the ensembles' training logits.

    Returns:
        Logits float32 (K, N, C) of each network, and labels int64 (N,), on the CPU.
    """
    backbone = networks[0].backbone
    progress = Progress(-(-len(data) // batch_size), report)
    collected: list[list[Tensor]] = [[] for _ in networks]
    seen: list[Tensor] = []
    for network in networks:
        network.eval()
    for inputs, labels in data.batches(batch_size, generator, augmented=generator is not None):
        with compute.autocast():
            features = list(backbone.features(inputs))
            final = backbone.classifier(features[-1]).float()
            for network, parts in zip(networks, collected, strict=True):
                parts.append(torch.stack(network.exit_logits(features, final)).float().cpu())
        seen.append(labels.cpu())
        progress.step(lambda: f"{sum(map(len, seen))} samples")
    return [torch.cat(parts, dim=1) for parts in collected], torch.cat(seen)


def silent_exits(logits: Tensor, additive: bool) -> list[int]:
    """List the exits whose own logits are the same for every sample, usually because a ReLU never fires.

    Does not find an exit of a cascade that repeats the previous one.

    Args:
        logits: (K, N, C) of single exits.
        additive: whether an exit adds its own logits to a share of the previous exit's. The share is subtracted first.

    Returns:
        Numbers of exits, from 1; [] for a single sample.
    """
    if logits.shape[1] < 2:
        return []
    own = logits.clone()
    if additive:
        own[1:] -= BOOST_TEMPERATURE * logits[:-1]
    spread = (own.amax(1) - own.amin(1)).amax(-1)
    return [exit + 1 for exit, value in enumerate(spread.tolist()) if value < ROUNDING]
