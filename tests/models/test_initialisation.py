"""Test the initial weights of networks: PyTorch's, or as in ZTW's released code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import ztw
from ztw.study.training_settings import BackboneSettings, IcsSettings


def layers(module: nn.Module, kind: type[nn.Module]) -> list:
    return [part for part in module.modules() if isinstance(part, kind)]


@pytest.mark.parametrize("arch", ["resnet20", "vgg16_bn"])
def test_convolutions_have_variance_two_over_n(arch):
    torch.manual_seed(0)
    for conv in layers(ztw.build_backbone(arch, init="released"), nn.Conv2d):
        expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * conv.weight.numel()))
        assert conv.bias is None or not conv.bias.any()


def test_the_wide_resnet_has_xaviers_uniform_weights():
    torch.manual_seed(0)
    for conv in layers(ztw.build_backbone("wide_resnet_32_4", init="released"), nn.Conv2d):
        area = conv.kernel_size[0] ** 2
        bound = math.sqrt(2) * math.sqrt(6 / (area * (conv.in_channels + conv.out_channels)))
        assert 0.95 * bound < conv.weight.abs().max() <= bound
        assert not conv.bias.any()


@pytest.mark.parametrize("arch", ["resnet20", "vgg16_bn", "wide_resnet_32_4"])
def test_the_backbones_linears_are_small(arch):
    torch.manual_seed(0)
    for linear in layers(ztw.build_backbone(arch, 200, init="released"), nn.Linear):
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not linear.bias.any()


def test_mobilenet_keeps_pytorchs_weights_as_it_has_no_initialiser_in_the_released_code():
    found, shares = [], []
    for init in ("torch", "released"):
        torch.manual_seed(0)
        backbone = ztw.build_backbone("mobilenet", init=init)
        torch.manual_seed(1)
        heads = ztw.build_network(backbone, placement=[0], init=init).heads
        state = {**backbone.state_dict(), **heads.state_dict()}
        shares.append(float(state.pop("0.body.2.alpha")))
        found.append(state)
    plain, drawn = found
    assert all(torch.equal(plain[name], drawn[name]) for name in plain)
    assert shares[0] == 0.5 != shares[1]
    (*_, depthwise, _) = layers(backbone, nn.Conv2d)
    assert depthwise.groups == 1024
    (classifier,), (convolution,) = layers(backbone, nn.Linear), layers(heads, nn.Conv2d)
    for layer, measured in ((depthwise, 0.194), (convolution, 0.024), (classifier, 0.018)):
        assert layer.weight.std().item() == pytest.approx(measured, rel=0.05)


def test_the_manual_says_that_mobilenet_keeps_pytorchs_weights():
    for settings in (BackboneSettings, IcsSettings):
        meaning = settings.model_fields["init"].description
        assert meaning
        assert "MobileNet" in meaning
        assert "VGG and MobileNet" not in meaning


def test_heads_of_a_resnet():
    torch.manual_seed(0)
    network = ztw.build_network(ztw.build_backbone("resnet56"), "cascade", init="released")
    alphas = torch.stack([head.body[2].alpha.detach() for head in network.heads])  # type: ignore[union-attr, index]
    assert alphas.min() >= 0
    assert alphas.max() <= 1
    assert alphas.std() > 0.2, "drawn from U(0, 1), each its own"
    for conv in layers(network.heads, nn.Conv2d):
        expected = math.sqrt(2 / (9 * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * conv.weight.numel()))


def test_heads_of_a_vgg_and_of_a_wide_resnet():
    vgg, wide = (
        ztw.build_network(ztw.build_backbone(arch), placement=[0, 1], init="released").heads
        for arch in ("vgg16_bn", "wide_resnet_32_4")
    )
    assert not any(layer.bias.any() for layer in layers(vgg, nn.Conv2d) + layers(vgg, nn.Linear))
    assert layers(vgg, nn.Linear)[0].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert all(layer.bias.any() for layer in layers(wide, nn.Conv2d))
    assert not any(layer.bias.any() for layer in layers(wide, nn.Linear))


def test_heads_on_torchvisions_models_draw_only_the_pool_s_share():
    backbone = ztw.build_backbone("torchvision/resnet18")
    heads = []
    for init in ("torch", "released"):
        torch.manual_seed(0)
        heads.append(ztw.build_network(backbone, placement=[0], init=init).heads[0].state_dict())
    plain, drawn = heads
    assert {name for name in plain if not torch.equal(plain[name], drawn[name])} == {"body.2.alpha"}
    assert plain["body.2.alpha"] == 0.5


def test_pytorchs_own_is_the_default():
    torch.manual_seed(0)
    plain = ztw.build_backbone("resnet8").state_dict()
    torch.manual_seed(0)
    again = ztw.build_backbone("resnet8", init="torch").state_dict()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
