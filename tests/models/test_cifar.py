"""The paper's backbones: what they consist of, and which images they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ztw


def test_pad_shortcut():
    backbone = ztw.build_backbone("resnet8", shortcut="pad")
    shortcut = backbone.stages[1].shortcut
    assert isinstance(shortcut, nn.Module)
    x = torch.randn(2, 16, 5, 6)
    out = shortcut(x)
    assert out.shape == (2, 32, 3, 3)
    torch.testing.assert_close(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_parameters_of_the_published_cifar_resnets(depth, count):
    backbone = ztw.build_backbone(f"resnet{depth}", shortcut="pad")  # 0.27 M, 0.85 M, 1.7 M in He et al. 2016
    assert sum(parameter.numel() for parameter in backbone.parameters()) == count


def test_vgg_needs_32_pixels():
    with pytest.raises(ztw.ZtwError, match="vgg16_bn: its five poolings need images of at least 32x32"):
        ztw.build_backbone("vgg16_bn", size=28)
