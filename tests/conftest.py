"""Shared fixtures: small networks and logits with a known shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ztw
from ztw.models.network import Placement


@pytest.fixture(autouse=True)
def one_thread():
    """The networks here are tiny: a second thread costs more than it saves, on a busy machine far more."""
    torch.set_num_threads(1)


@pytest.fixture
def logits() -> torch.Tensor:
    """(4, 200, 5) random logits."""
    return 3 * torch.randn(4, 200, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> torch.Tensor:
    """(200,) random labels of 5 classes."""
    return torch.randint(5, (200,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def cost() -> torch.Tensor:
    return torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)


def small_network(ics: str = "independent", placement: Placement = "all") -> ztw.EarlyExitNetwork:
    """A resnet8 for 10x10 grey images and 5 classes, in eval mode, with BatchNorm statistics of its own."""
    torch.manual_seed(3)
    backbone = ztw.build_backbone("resnet8", classes=5, channels=1, size=10)
    network = ztw.build_network(backbone, ics, placement=placement)
    images = torch.randn(64, 1, 10, 10)
    with torch.no_grad():
        for _ in range(3):
            network(images)
        network.eval()
        linears: list[Any] = [head.linear for head in network.heads]
        linears += list(backbone.classifier.children())[-1:]
        for exit, linear in enumerate(
            linears
        ):  # diverse, confident answers, so that samples leave everywhere
            logits = network(images)[exit]
            linear.weight.mul_(2.5 / (logits - logits.mean(0)).std())
            linear.bias.sub_(network(images)[exit].mean(0))
    return network
