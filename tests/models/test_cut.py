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


class Shortcut(Blocks):
    """Residual blocks that share an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = self.blocks[:2]
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = self.act(x + block.get_submodule("conv")(x))
        return self.head(x)


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


class Called(nn.Module):
    """A model whose layers have the names of attributes of a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.in_eval = nn.Conv2d(3, 4, 3, 4), nn.Conv2d(4, 4, 3)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """images (N, 3, 16, 16) -> logits (N, 5)."""
        return self.linear(self.in_eval(self.places(x).relu()).flatten(1))


def test_layers_may_have_any_name():
    backbone = check(Called(), 1, at=["places"])
    assert "classifier.linear.weight" in backbone.state_dict()


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
        (Plain("flow"), {"at": ["a"]}, r"^Plain: torch.export cannot follow .*values of tensors.* stages="),
        (Blocks("flow"), {}, r"^Blocks: torch.export cannot follow .*values of tensors.* stages="),
        (Plain("random"), {"at": ["a"]}, "^Plain: the logits .* differ .* draws random numbers or remembers"),
        (Plain("counts"), {"at": ["a"]}, "^Plain: the logits .* differ .* draws random numbers or remembers"),
        (Plain("text"), {"at": ["a"]}, "^Plain: returns a str, must return logits .*; wrap it"),
        (Plain("empty"), {"at": ["a"]}, "^Plain: returns a tuple, must return logits .*; wrap it"),
        (Plain("nothing"), {"at": ["a"]}, "^Plain: returns a NoneType, must return logits .*; wrap it"),
        (
            Plain("map"),
            {"at": ["a"]},
            r"^Plain: returns shape \(3, 3, 4, 4\) for 3 samples, must be \(3, classes\)",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(48, 3)),
            {},
            r"^Sequential: has no blocks to cut after; name modules with at=\[...\], e.g. of 0$",
        ),
        (Plain(), {"at": ["b"]}, r"^Plain: at='b' leaves no layer for the classifier; cut before the last"),
        (Plain("unused"), {"at": ["b"]}, r"^Plain: at='b' is called 0 times, must be once"),
        (
            Plain("integers"),
            {"at": ["rounds"]},
            "at='rounds' does not return features of floats; name another",
        ),
        (
            Plain("mean"),
            {"at": ["a"]},
            "^Plain: at='a' cannot be a cut, because mean crosses the cut and does not",
        ),
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
            r"Sequential: cannot take images of \(3, 3, 4, 4\) \(",
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


@pytest.mark.parametrize("how", ["dict", "tuple", "softmax", "object"])
def test_what_a_model_may_return(how):
    model = Plain(how).eval()
    images = torch.randn(5, 3, 4, 4)
    backbone = ztw.as_backbone(model, (3, 4, 4))
    assert len(backbone.stages) == 1, "without blocks and activations, cut after layers with weights"
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), Plain.logits_of(model(images)))


def test_a_model_that_ends_in_a_convolution_and_pooling():
    """As SqueezeNet does. Without blocks, cut after an activation, but not after the last layer with weights."""
    torch.manual_seed(0)
    convs = [nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), nn.Conv2d(5, 4, 3)]
    model = nn.Sequential(*convs, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    backbone = ztw.as_backbone(model, (3, 16, 16))
    assert backbone.feature_shapes == [(5, 14, 14)]
    torch.testing.assert_close(backbone(IMAGES), model(IMAGES))
    assert backbone.num_classes == 4


def test_cuts_that_a_shortcut_goes_around():
    """The shortcut's value is carried in the state."""
    model = Shortcut()
    backbone = check(model, 2, at=["blocks.1.conv", "blocks.0.conv"])
    state = next(iter(backbone.features(IMAGES)))
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "features": (4, 4, 16, 16),
        "value_0": (4, 4, 16, 16),
    }
    assert torch.equal(state["value_0"], model.eval().stem(IMAGES))
    with pytest.raises(ztw.ZtwError, match=r"at='act' is called 2 times, must be once"):
        ztw.as_backbone(model, (3, 16, 16), at=["act"])
    with pytest.raises(ztw.ZtwError, match=r"at='blocks.9' .*; known: blocks.1"):
        ztw.as_backbone(model, (3, 16, 16), at=["blocks.9"])


@pytest.mark.parametrize("shape", [(3, 4, 0), 3, (3, 4.0, 4), (), "344"])
def test_shapes_that_are_none(shape):
    with pytest.raises(ztw.ZtwError, match=r"input_shape .*: must be whole numbers, e.g. \(channels, height"):
        ztw.as_backbone(Plain(), shape)


def test_build_network_says_what_to_do_with_a_plain_module():
    with pytest.raises(
        ztw.ZtwError, match=r"Plain, must be a Backbone; .*ztw.as_backbone\(model, input_shape\)"
    ):
        ztw.build_network(Plain())  # type: ignore[arg-type]
    with pytest.raises(ztw.ZtwError, match="is a Backbone already"):
        ztw.as_backbone(ztw.build_backbone("resnet8"), (3, 32, 32))
