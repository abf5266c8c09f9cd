"""Test the early-exit network: logits and gradients between exits, and wrong arguments."""

from __future__ import annotations

import pytest
import torch
from conftest import pixel_network, small_network
from torch import nn

import ztw
from ztw.device import Compute
from ztw.models.network import BOOST_TEMPERATURE, CONNECTIONS


@pytest.mark.parametrize(("connection", "reaches"), [("cascade", True), ("cascade_detached", False)])
def test_where_the_cascade_sends_its_gradient(connection, reaches):
    network = small_network(connection)
    features = list(network.backbone.features(torch.randn(8, 1, 10, 10)))
    features = [feature.detach() for feature in features]
    outputs = network.ic_logits(features)
    network.zero_grad()
    outputs[1].square().sum().backward()  # the second IC's loss alone
    first = [parameter.grad for parameter in network.heads[0].parameters()]
    assert any(grad is not None and grad.abs().sum() > 0 for grad in first) is reaches
    assert all(parameter.grad is not None for parameter in network.heads[1].parameters())


def test_a_cascade_uses_the_previous_logits():
    network = small_network("cascade_detached")
    features = [f.detach() for f in network.backbone.features(torch.randn(8, 1, 10, 10))]
    before = network.ic_logits(features)[2]
    with torch.no_grad():
        network.heads[1].linear.bias.add_(1)  # type: ignore[union-attr, operator]
    assert not torch.allclose(before, network.ic_logits(features)[2])


def test_boosted_exits_add_to_half_of_the_one_before_without_gradient():
    network, images = pixel_network("boosted"), torch.randn(3, 1, 1, 4, requires_grad=True)
    pixels = images.flatten(1)
    logits = network(images)
    factor, t = 0.0, BOOST_TEMPERATURE
    for exit in range(4):
        factor = 1 + t * factor
        torch.testing.assert_close(logits[exit], factor * pixels)
        (gradient,) = torch.autograd.grad(logits[exit].sum(), images, retain_graph=True)
        torch.testing.assert_close(gradient, torch.ones_like(images), msg="only the exit's own part")


@pytest.mark.parametrize("connection", ztw.list_connections())
def test_logits_at_an_exit_are_those_of_all_exits(connection):
    network, images = small_network(connection), torch.randn(3, 1, 10, 10)
    with torch.no_grad():
        logits = network(images)
        for exit in range(network.exits):
            torch.testing.assert_close(network.logits_at(exit, images), logits[exit], atol=1e-4, rtol=1e-4)


def test_logits_are_float32_under_bf16():
    network = small_network()
    with Compute(torch.device("cpu"), "bf16").autocast(), torch.no_grad():
        logits = network(torch.randn(4, 1, 10, 10))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float()), "more than bfloat16's eight bits"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"connection": "cascaded"},
            "unknown connection 'cascaded'; known: independent, cascade, cascade_detached, boosted",
        ),
        ({"head": "min"}, "unknown head 'min'; known: conv, pool, mlp, identity"),
        ({"pooling": "min"}, "unknown pooling 'min'; known: mixed, avg, max, first"),
        ({"depth": 2}, "unknown head option 'depth'; known: pooling, width, layer_norm, init"),
        ({"init": "zero"}, "unknown init 'zero'; known: torch, released"),
    ],
)
def test_what_is_unknown_is_named(asked, message):
    with pytest.raises(ztw.ZtwError) as caught:
        ztw.build_network(ztw.build_backbone("resnet8"), **asked)
    assert str(caught.value) == message


def test_a_network_of_an_unknown_mode_is_refused():
    with pytest.raises(ztw.ZtwError, match="unknown connection 'joint'"):
        ztw.EarlyExitNetwork(ztw.build_backbone("resnet8"), [], (), "joint")


@pytest.mark.parametrize("connection", ztw.list_connections())
def test_a_network_finds_its_connection_by_name(connection):
    network = small_network(connection)
    assert network.connection.name == connection
    assert network.connection == CONNECTIONS[connection]


def test_head_options_reach_every_head():
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    network = ztw.build_network(backbone, "cascade", pooling="max", width=0.5, layer_norm=True)
    kinds = [{type(module) for module in head.modules()} for head in network.heads]
    assert all(torch.nn.AdaptiveMaxPool2d in kind for kind in kinds)
    assert [torch.nn.LayerNorm in kind for kind in kinds] == [False, True, True], "the first sees no logits"
    convolutions = [module for module in network.heads.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [convolution.out_channels for convolution in convolutions] == [8, 16, 32]


def own_cnn() -> ztw.Backbone:
    """Return a backbone of three convolutions, for which heads with a convolution are expensive."""
    sizes = [(3, 16), (16, 32), (32, 64)]
    stages = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in sizes]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return ztw.Backbone("own", stages, classifier, (3, 32, 32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exits 1 to 3"),
        ({"placement": [0]}, "exit 1"),
        ({"head": "pool"}, None),
        ({"width": 0.05}, None),
    ],
)
def test_exits_that_cost_more_than_they_can_save_are_reported(options, said, capsys):
    network = ztw.build_network(own_cnn(), **options)
    found = capsys.readouterr().err
    if said is None:
        assert not found
    else:
        relative = (ztw.macs(network) / ztw.macs(network.backbone)).tolist()[:-1]
        costs = " to ".join(f"{cost:.2f}" for cost in dict.fromkeys((relative[0], relative[-1])))
        assert min(relative) > 0.995
        assert found == (
            f"note: own: a sample that leaves at {said} saves nothing, because it costs {costs} of the backbone's MACs;"
            " use head='pool', a smaller width= or fewer exits\n"
        )
    ztw.build_network(own_cnn(), progress=False, **options)
    assert not capsys.readouterr().err


def test_the_paper_s_exits_on_a_resnet_are_not_reported(capsys):
    ztw.build_network(ztw.build_backbone("resnet20"))
    assert not capsys.readouterr().err
