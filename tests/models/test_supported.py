"""Test that modules that cannot be cut give a one-line error with the remedy, in every public function."""

from __future__ import annotations

import warnings

import pytest
import torch
from own_models import Block
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import ztw


def model() -> nn.Sequential:
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


CHANGES = {
    "weight_norm": (weight_norm, r"call torch\.nn\.utils\.remove_weight_norm"),
    "spectral_norm": (spectral_norm, r"call torch\.nn\.utils\.remove_spectral_norm"),
    "pruning": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"prune\.remove\("),
    "parametrized weight_norm": (parametrizations.weight_norm, "call .*remove_parametrizations"),
    "parametrized spectral_norm": (parametrizations.spectral_norm, "call .*remove_parametrizations"),
    "orthogonal": (parametrizations.orthogonal, "call .*remove_parametrizations"),
    "script": (scripted, "pass the original module"),
    "compile": (compiled, "pass its _orig_mod"),
    "meta": (lambda layer: layer.to("meta"), "load the weights first"),
}


@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize(("change", "remedy"), CHANGES.values(), ids=CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
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


@pytest.mark.parametrize("change", [scripted, compiled])
def test_a_whole_model_is_named(change):
    with pytest.raises(ztw.ZtwError, match=r"^\w+: is .*pass "):
        ztw.as_backbone(change(model()), (3, 8, 8))


def test_own_stages_and_heads_are_checked_too():
    *stages, pool, flatten, linear = model()
    classifier = nn.Sequential(pool, flatten, linear)
    head = nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(4 * 6 * 6, 5)))
    with pytest.raises(ztw.ZtwError, match="head 1: 1: weight is parametrized"):
        ztw.EarlyExitNetwork(ztw.Backbone("own", stages, classifier, (3, 8, 8)), [head], (1,), "independent")
    stages[1:2] = [compiled(stages[1])]
    with pytest.raises(ztw.ZtwError, match=r"own: stages\.1: is compiled"):
        ztw.Backbone("own", stages, classifier, (3, 8, 8))
