"""Test the measurement of a network's memory in ONNX Runtime."""

from __future__ import annotations

import torch
from torch import nn

import ztw
from ztw.onnx.memory import peak_memory


def wide(width: int) -> ztw.Backbone:
    """Build a network with about width**2 weights."""
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, width), nn.ReLU())]
    return ztw.Backbone(
        "wide", stages, nn.Sequential(nn.Linear(width, width), nn.Linear(width, 4)), (3, 8, 8)
    )


def test_memory_grows_with_the_weights(tmp_path):
    peaks = []
    for width in (8, 3000):
        runner = ztw.OnnxRunner(
            ztw.export_onnx(wide(width), None, tmp_path / "wide.onnx"), threads=1, cache=False
        )
        peaks.append(peak_memory(runner))
    small, large = peaks
    assert small is not None
    assert small < 40e6
    weights = 4 * 3000**2
    assert weights < (large or 0) - small < 5 * weights  # with copies


def test_a_network_with_exits_is_computed_to_its_end(tmp_path):
    torch.manual_seed(0)
    network = ztw.build_network(ztw.build_backbone("resnet8"), progress=False).eval()
    for rule in (ztw.MaxSoftmax(0.0), ztw.Patience(1), ztw.FixedExit(2)):
        runner = ztw.OnnxRunner(
            ztw.export_onnx(network, rule, tmp_path / "network.onnx"), threads=1, cache=False
        )
        assert (peak_memory(runner) or 0) > 1e5
