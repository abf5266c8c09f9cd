"""Test that computed weights (weight_norm, pruning, ...) become plain ones, and the user's model stays unchanged."""

from __future__ import annotations

import pytest
import torch
from own_models import COMPUTED_WEIGHTS
from torch import nn
from torch.nn.utils import parametrizations

import ztw
from ztw.models.supported import plain


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", COMPUTED_WEIGHTS.values(), ids=COMPUTED_WEIGHTS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_the_users_model_stays_and_its_copy_computes_the_same(change, training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    for layer in (model[0], model[2]):
        change(layer)
    batch = torch.randn(4, 6)
    expected = model.eval()(batch)
    backbone = ztw.as_backbone(model.train(training), (6,), at=["1", "3"])
    assert [name for name in backbone.state_dict() if "original" in name or "weight_" in name] == []
    assert backbone.training == model.training == training
    torch.testing.assert_close(backbone.eval()(batch), expected)
    torch.testing.assert_close(model.eval()(batch), expected)
    (loss := model(batch).sum()).backward()
    assert loss.isfinite(), "the user's model cannot train any more"
    assert all(weight.requires_grad for weight in backbone.parameters())


def test_a_frozen_layer_stays_frozen():
    layer = parametrizations.weight_norm(nn.Linear(4, 4))
    layer.requires_grad_(False)
    assert [weight.requires_grad for weight in plain(nn.Sequential(layer)).parameters()] == [False, False]
