"""Test the paper's backbones: their layers, and the images that they accept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ztw


def test_ics_see_a_resnets_sums_before_or_after_the_relu():
    """The place of the cut changes the features, but not the network's output."""
    before, after = (
        ztw.build_backbone("resnet14", ic_features=place).eval() for place in ("before_relu", "after_relu")
    )
    after.load_state_dict(before.state_dict())
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        sums, rectified = list(before.features(images)), list(after.features(images))
        assert all((feature < 0).any() for feature in sums)
        for feature, expected in zip(sums, rectified, strict=True):
            torch.testing.assert_close(feature.relu(), expected)
        torch.testing.assert_close(before(images), after(images))
    assert ztw.build_backbone("resnet14").state_dict().keys() == after.state_dict().keys()


def test_before_is_the_default():
    torch.manual_seed(0)
    default = ztw.build_backbone("resnet8").eval()
    with torch.no_grad():
        assert (next(iter(default.features(torch.randn(2, 3, 32, 32)))) < 0).any()


@pytest.mark.parametrize("place", ["before_relu", "after_relu"])
@torch.no_grad()
def test_no_stage_overwrites_the_features_of_a_head(place):
    backbone = ztw.build_backbone("resnet14", ic_features=place).eval()
    images = torch.randn(2, 3, 32, 32)
    kept = [feature.clone() for feature in backbone.features(images)]
    features = list(backbone.features(images))
    backbone.classifier(features[-1])
    for feature, expected in zip(features, kept, strict=True):
        assert torch.equal(feature, expected)


@pytest.mark.parametrize("place", ["before_relu", "after_relu"])
def test_where_ics_sit_changes_no_cost(place):
    network = ztw.build_network(ztw.build_backbone("resnet14", ic_features=place))
    other = ztw.build_network(ztw.build_backbone("resnet14"))
    assert ztw.macs(network).equal(ztw.macs(other))
    assert ztw.macs(network, "published").equal(ztw.macs(other, "published"))
    folded = ztw.fold_batch_norm(network)
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        logits = folded(images)
        torch.testing.assert_close(logits, network.eval()(images), atol=1e-4, rtol=1e-4)
    result = folded.infer(images, ztw.MaxSoftmax(1.0))
    torch.testing.assert_close(result.logits, logits[-1], atol=1e-4, rtol=1e-4)


def test_momentum_of_the_wide_resnets_last_norm():
    backbone = ztw.build_backbone("wide_resnet_32_4", last_norm_momentum=0.9)
    momenta = [part.momentum for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    assert momenta == [0.1] * 30 + [0.9]


def test_a_vgg_has_no_relu_between_its_last_linears():
    backbone = ztw.build_backbone("vgg16_bn").eval()
    classifier = backbone.classifier
    x, y = torch.randn(2, 4, 512)
    with torch.no_grad():
        torch.testing.assert_close(
            classifier(x) + classifier(y), classifier(x + y) + classifier(torch.zeros(4, 512))
        )


def test_an_unknown_option_is_named():
    with pytest.raises(ztw.ZtwError) as caught:
        ztw.build_backbone("resnet8", shortcuts="pad")
    assert str(caught.value) == (
        "unknown backbone option 'shortcuts'; known: shortcut, ic_features, last_norm_momentum, init,"
        " input_size"
    )


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
