"""Test modules that are rewritten for a fast export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ztw.models.pooling import MixedPool
from ztw.onnx.modules import PlainPool


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(4), MixedPool(4)])
@pytest.mark.parametrize("size", [(7, 7), (14, 9), (4, 6)])
def test_a_pooling_is_exported_in_a_few_steps(pool, size):
    """A pool with uneven windows must not be exported window by window."""
    images, plain = torch.randn(3, 2, *size), PlainPool(pool.requires_grad_(False)).eval()
    program = torch.export.export(plain, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    steps = [node for node in program.graph.nodes if node.op == "call_function"]
    assert len(steps) < 20
    torch.testing.assert_close(program.module()(images), pool(images))
