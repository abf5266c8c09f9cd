"""Test users' models cut into stages: they compute the same, or are refused with a reason."""

from __future__ import annotations

import pytest
import torch
import torchvision
from conftest import same, state_of
from own_models import Blocks, Cnn, Plain, Transformer
from torch import nn

import ztw

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def check(model: nn.Module, stages: int, **how) -> ztw.Backbone:
    """Check that the backbone computes what the model computes, and that the model is unchanged."""
    model.train()
    before, modes = state_of(model), [module.training for module in model.modules()]
    names, rng = set(vars(model)), torch.get_rng_state()
    backbone = ztw.as_backbone(model, (3, 16, 16), **how)
    assert torch.equal(torch.get_rng_state(), rng)
    assert same(before, state_of(model))
    assert modes == [module.training for module in model.modules()]
    assert names == set(vars(model))
    assert backbone.training
    assert len(backbone.stages) == stages
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval()(IMAGES), model.eval()(IMAGES), atol=1e-5, rtol=1e-4)
        network = ztw.build_network(backbone, "cascade").eval()
        result = network.infer(IMAGES, ztw.MaxSoftmax(2.0))
        torch.testing.assert_close(result.logits, model(IMAGES), atol=1e-5, rtol=1e-4)
    assert ztw.macs(network).diff().gt(0).all()
    return backbone


def test_a_cnn_with_functional_calls():
    backbone = check(Cnn(), 3, at=["drop", "act", "conv1"])
    assert backbone.feature_shapes == [(8, 16, 16), (8, 8, 8), (128,)]
    assert "stages.0.conv1.weight" in backbone.state_dict()
    assert ztw.as_backbone(Cnn().eval(), (3, 16, 16), at=["act"]).training is False


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_of_a_transformer_encoder(norm_first):
    assert check(Transformer(norm_first=norm_first), 3).feature_shapes == [(17, 16)] * 3


@pytest.mark.parametrize("how", ["", "dropout"])
def test_blocks_whatever_is_in_them(how):
    check(Blocks(how), 3)
    check(Blocks(how), 1, at=["blocks.1"])


def test_torchvision_s_own():
    check(torchvision.models.resnet18(num_classes=5), 8)
    check(torchvision.models.resnet18(num_classes=5), 2, at=["layer1", "layer2.0"])


def test_by_hand():
    model = Plain("flow")
    stages, classifier = [nn.Sequential(nn.Flatten(), model.a, nn.ReLU())], model.b
    with pytest.raises(ztw.ZtwError, match=r"^Plain: .* differ .* by up to"):
        ztw.as_backbone(model, (3, 4, 4), stages=stages, classifier=classifier)
    model = Plain()
    backbone = ztw.as_backbone(
        model, (3, 4, 4), stages=[nn.Sequential(nn.Flatten(), model.a, nn.ReLU())], classifier=model.b
    )
    assert all(part is not model.a for part in backbone.modules())
    assert backbone.num_classes == 3


@pytest.mark.parametrize(
    ("model", "how", "message"),
    [
        (Plain("flow"), {"at": ["a"]}, "^Plain: .* values of tensors.* stages="),
        (Plain("random"), {"at": ["a"]}, "^Plain: .*draws random numbers"),
        (
            Plain("map"),
            {"at": ["a"]},
            r"^Plain: returns shape \(3, 3, 4, 4\) for 3 samples, must be \(3, classes\)",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(48, 3)),
            {},
            r"^Sequential: has no blocks to cut after; name modules with at=",
        ),
        (Plain(), {"at": ["b"]}, r"at='b' .*classifier"),
        (Plain(), {"at": ["aa"]}, "^Plain: at='aa' .*; known: a"),
        (Plain(), {"at": ["a"], "stages": []}, "stages= and classifier= .* without at="),
        (Plain(), {"stages": [nn.Flatten()]}, "stages= and classifier= .* together"),
        (
            Plain(),
            {"stages": [nn.Flatten()], "classifier": nn.Linear(7, 3)},
            "its stages do not fit together",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(9, 3)),
            {},
            r"Sequential: cannot take images of \(3, 3, 4, 4\)",
        ),
        (Plain(), {"at": "a"}, "at='a', must be a list of .*name"),
        (Plain(), {"at": []}, r"at=\[\], must be a list of .*name"),
        (Plain().double(), {"at": ["a"]}, "Plain: has weights of torch.float64, must be torch.float32"),
        ("resnet18", {}, "as_backbone: str, must be a torch.nn.Module"),
    ],
)
def test_models_that_cannot_be_cut_give_the_reason(model, how, message):
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        ztw.as_backbone(model, (3, 4, 4), **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["dropout", "counts", "dict", "tuple", "softmax", ""])
def test_whatever_a_forward_does(how):
    model = Plain(how)
    backbone = check_values(ztw.as_backbone(model, (3, 4, 4), at=["a"]))
    images = torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        found = backbone.eval()(images)
        expected = model.eval()(images)
    expected = expected["out"] if how == "dict" else expected[0] if how == "tuple" else expected
    torch.testing.assert_close(found, expected)
    assert all(stage.in_training is not None for stage in backbone.stages)


def check_values(backbone: ztw.Backbone) -> ztw.Backbone:
    """Check that dropped rows take every value of a state with them."""
    network = ztw.build_network(backbone, head="pool", progress=False).eval()
    images = torch.randn(6, *backbone.input_shape)
    with torch.no_grad():
        logits = network(images)
    scores = logits[0].softmax(-1).amax(-1).sort().values
    result = network.infer(images, ztw.MaxSoftmax([float(scores[2:4].mean())]))
    assert result.exit_index.sum() == 3
    torch.testing.assert_close(
        result.logits, logits[result.exit_index, torch.arange(6)], atol=1e-5, rtol=1e-4
    )
    return backbone


def test_cuts_that_a_shortcut_goes_around():
    model = torchvision.models.resnet18(num_classes=5)
    (stage,) = check_values(ztw.as_backbone(model, (3, 32, 32), at=["layer1.0.conv1"])).stages
    assert set(stage.eval()(torch.zeros(2, 3, 32, 32))) == {"features", "value_0"}  # the shortcut, too
    with pytest.raises(ztw.ZtwError, match=r"at='layer1.0.relu' is called 2 times, must be once"):
        ztw.as_backbone(model, (3, 32, 32), at=["layer1.0.relu"])
    with pytest.raises(ztw.ZtwError, match=r"at='layer9' .*; known: layer4"):
        ztw.as_backbone(model, (3, 32, 32), at=["layer9"])


@pytest.mark.parametrize("shape", [(3, 4, 0), 3, (3, 4.0, 4), (), "3"])
def test_wrong_shapes(shape):
    with pytest.raises(ztw.ZtwError, match=r"input_shape .*: must be whole numbers, e.g. \(channels, height"):
        ztw.as_backbone(Plain(), shape)
    with pytest.raises(ztw.ZtwError, match=r"give either input_shape=.* or example="):
        ztw.as_backbone(Plain())


def test_build_network_says_what_to_do_with_a_plain_module():
    with pytest.raises(
        ztw.ZtwError, match=r"Plain, must be a Backbone; .*ztw.as_backbone\(model, input_shape\)"
    ):
        ztw.build_network(Plain())  # type: ignore[arg-type]
    with pytest.raises(ztw.ZtwError, match="is a Backbone already"):
        ztw.as_backbone(ztw.build_backbone("resnet8"), (3, 32, 32))
