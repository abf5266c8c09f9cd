"""Test that exits with the same logits for all images are found, also if earlier logits are added to them."""

from __future__ import annotations

import pytest
import torch
from conftest import small_network, stripes

from ztw.evaluation.predictions import predict_networks, silent_exits


@pytest.mark.parametrize("connection", ["independent", "boosted"])
def test_a_head_that_died_in_training_is_found(connection):
    torch.manual_seed(0)
    network, data = small_network(connection), stripes()
    (logits,), _ = predict_networks([network], data)
    assert silent_exits(logits, network.connection.additive) == []
    with torch.no_grad():
        network.heads[1].get_parameter("body.0.bias").fill_(-1e6)  # its ReLU is always 0
    (logits,), _ = predict_networks([network], data)
    assert silent_exits(logits, network.connection.additive) == [2]


def test_only_what_an_exit_adds_itself_counts():
    previous = torch.randn(50, 3)
    repeated = 0.5 * previous + torch.tensor([1.0, 2.0, 3.0])
    logits = torch.stack([previous, repeated])
    assert silent_exits(logits, additive=True) == [2]
    assert silent_exits(logits, additive=False) == []
    assert silent_exits(logits[:, :1], additive=True) == [], "one image is like itself"
