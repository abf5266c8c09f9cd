"""Modules that cannot be cut are refused in one line that says what to do. Computed weights become plain ones."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import same, state_of
from own_models import COMPUTED_WEIGHTS, Block
from torch import nn

import ztw

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


def scripted(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(layer)


def compiled(layer: nn.Module) -> nn.Module:
    return torch.compile(layer)  # type: ignore[return-value]


def quantised(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 5)), {nn.Linear})


@pytest.mark.parametrize("change", COMPUTED_WEIGHTS.values(), ids=COMPUTED_WEIGHTS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_computed_weights_become_plain(change):
    own = model()
    for place in (0, 5):
        own[place] = change(own[place])
    own(IMAGES).sum().backward()  # leaves tensors with a gradient function in the modules
    before, types = state_of(own), [type(part) for part in own.modules()]
    backbone = ztw.as_backbone(own.eval(), (3, 8, 8))
    names = {name for name, _ in backbone.named_parameters()}
    assert names == {
        *(
            f"stages.{number}.{name}"
            for number in (0, 1)
            for name in (f"{number + 1}.conv.weight", f"{number + 1}.conv.bias")
        ),
        "stages.0.0.weight",
        "stages.0.0.bias",
        "classifier.5.weight",
        "classifier.5.bias",
    }
    assert all(weight.requires_grad for weight in backbone.parameters())
    with torch.no_grad():
        torch.testing.assert_close(backbone(IMAGES), own(IMAGES))
    assert before.keys() == own.state_dict().keys()
    assert same(before, state_of(own))
    assert types == [type(part) for part in own.modules()]


def test_compiled_modules_are_replaced_by_their_originals():
    own = model()
    expected = own.eval()(IMAGES)
    own[0] = compiled(own[0])
    for whole in (own, compiled(own), compiled(model())):
        backbone = ztw.as_backbone(whole.eval(), (3, 8, 8))
        assert backbone.arch == "Sequential"
        assert "stages.0.0.weight" in backbone.state_dict()
        torch.testing.assert_close(backbone(IMAGES), expected)
    assert own[0]._orig_mod is not None


REFUSED = {
    "script": (scripted, "pass the original module"),
    "meta": (lambda layer: layer.to("meta"), "load the weights first"),
}


@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize(("change", "remedy"), REFUSED.values(), ids=REFUSED)
def test_a_layer_that_cannot_be_cut_is_named_with_the_remedy(place, change, remedy):
    own = model()
    own[place] = change(own[place])
    with pytest.raises(ztw.ZtwError, match=rf"^Sequential: {place}: .*{remedy}"):
        ztw.as_backbone(own, (3, 8, 8))


def test_a_quantised_layer_is_named():
    own = model()
    own[5] = quantised(own[5])
    with pytest.raises(ztw.ZtwError, match=r"^Sequential: 5\.0: is quantised.*pass the float model"):
        ztw.as_backbone(own, (3, 8, 8))


def test_a_whole_scripted_model_is_named():
    with pytest.raises(ztw.ZtwError, match=r"^\w+: is a TorchScript module.*pass the original module"):
        ztw.as_backbone(scripted(model()), (3, 8, 8))


def test_own_stages_and_heads_are_checked_too():
    *stages, pool, flatten, linear = model()
    classifier = nn.Sequential(pool, flatten, linear)
    head = nn.Sequential(nn.Flatten(), scripted(nn.Linear(4 * 6 * 6, 5)))
    with pytest.raises(ztw.ZtwError, match="head 1: 1: is a TorchScript module"):
        ztw.EarlyExitNetwork(ztw.Backbone("own", stages, classifier, (3, 8, 8)), [head], (1,), "independent")
    stages[1:2] = [scripted(nn.ReLU())]
    with pytest.raises(ztw.ZtwError, match=r"own: stages\.1: is a TorchScript module"):
        ztw.Backbone("own", stages, classifier, (3, 8, 8))
