"""Trainings that change the trunk: what learns when, with which weight, and what gradients reach it."""

from __future__ import annotations

import pytest
import torch
from conftest import small_network
from test_training import same, state_of, stripes
from torch import nn

import ztw
from ztw.models.backbone import Backbone
from ztw.models.network import BOOST_TEMPERATURE, EarlyExitNetwork
from ztw.models.operations import stage_costs
from ztw.training import joint as regimes
from ztw.training.joint import exit_weights, rescaled_logits, scale_gradient, train_jointly
from ztw.training.layer_wise import train_layer_wise
from ztw.training.loop import Recipe

RECIPE = Recipe(epochs=4, batch_size=32, lr=0.01, weight_decay=1e-4, optimizer="adam")


def test_exit_weights_by_hand():
    network = small_network(placement=[0, 2])
    assert exit_weights(network, "uniform")(0.3).tolist() == [1, 1, 1]
    torch.testing.assert_close(exit_weights(network, "depth")(0.3), torch.tensor([1.0, 2.0, 3.0]) / 6)
    assert exit_weights(network, [0.5, 0, 2])(0.3).tolist() == [0.5, 0, 2]
    growing = exit_weights(network, "growing")
    costs = stage_costs(network.backbone).cumsum(0) / ztw.backbone_macs(network.backbone)
    first, last = growing(0.0), growing(1.0)
    torch.testing.assert_close(first, torch.tensor([0.01, 0.01, 1.0]))
    torch.testing.assert_close(last, torch.tensor([float(costs[0]), float(costs[2]), 1.0]))
    torch.testing.assert_close(growing(0.5), (first + last) / 2)
    asked = exit_weights(network, "growing", [0.15, 0.9])(1.0)
    torch.testing.assert_close(asked, torch.tensor([0.15, 0.9, 1.0]))


def test_unknown_weights_are_refused():
    network = small_network(placement=[0, 2])
    with pytest.raises(ztw.ZtwError, match="unknown exit_weights 'deep'; known: uniform, depth, growing"):
        exit_weights(network, "deep")
    with pytest.raises(ztw.ZtwError, match="exit_weights: 2 numbers, the network has 3 exits"):
        exit_weights(network, [1.0, 2.0])


def test_scale_gradient_changes_the_gradient_only():
    x = torch.tensor([1.5, -2.0], requires_grad=True)
    y = scale_gradient(x, 0.25)
    assert torch.equal(y, x)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.25, 0.25]


def toy(ics: str) -> EarlyExitNetwork:
    """Three stages and heads that change nothing: the logits of every exit are the image's pixels."""
    stages = [nn.Sequential(nn.Flatten(), nn.Identity()), nn.Identity(), nn.Identity()]
    backbone = Backbone("toy", stages, nn.Identity(), (1, 1, 4))
    heads = [nn.Identity() for _ in range(3)]
    return EarlyExitNetwork(backbone, heads, (0, 1, 2), ics)


def test_every_exit_sends_an_equal_share_of_the_gradient():
    network = toy("independent")
    images = torch.randn(2, 1, 1, 4, requires_grad=True)
    outputs = rescaled_logits(network, images)
    assert len(outputs) == 4
    for output in outputs:  # K = 4 exits, each a quarter
        (gradient,) = torch.autograd.grad(output.sum(), images, retain_graph=True)
        torch.testing.assert_close(gradient, torch.full_like(images, 0.25))


def test_rescaling_changes_no_answer():
    network = small_network("boosted")
    images = torch.randn(4, 1, 10, 10)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(rescaled_logits(network, images)), network(images))


def test_boosted_exits_add_to_half_of_the_one_before_without_gradient():
    network, images = toy("boosted"), torch.randn(3, 1, 1, 4, requires_grad=True)
    pixels = images.flatten(1)
    logits = network(images)
    factor, t = 0.0, BOOST_TEMPERATURE
    for exit in range(4):
        factor = 1 + t * factor
        torch.testing.assert_close(logits[exit], factor * pixels)
        (gradient,) = torch.autograd.grad(logits[exit].sum(), images, retain_graph=True)
        torch.testing.assert_close(gradient, torch.ones_like(images), msg="only the exit's own part")


@pytest.mark.parametrize("ics", list(ztw.IC_MODES))
@pytest.mark.parametrize("rescale", [False, True])
def test_joint_training_learns_with_the_trunk(ics, rescale):
    torch.manual_seed(0)
    network = ztw.build_network(ztw.build_backbone("resnet8", 5, 1, 10), ics)
    trunk, heads = state_of(network.backbone), state_of(network.heads)
    history = train_jointly(network, stripes(), RECIPE, 1, exit_weights(network, "growing"), rescale)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["accuracy"] > 0.4
    assert not same(trunk, state_of(network.backbone))
    assert not same(heads, state_of(network.heads))
    assert not network.training


@pytest.mark.parametrize("ics", list(ztw.IC_MODES))
def test_layer_wise_training_goes_exit_after_exit(ics, monkeypatch):
    network = small_network(ics, placement=[0, 1])
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    phases, frozen = [], []
    plain = regimes.run_epochs

    def spy(step, name, data, optimizer, recipe, *rest):
        trained = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        phases.append({".".join(name.split(".")[:-1][:3]) for name in trained})
        before = state_of(network)
        history = plain(step, name, data, optimizer, recipe, *rest)
        changed = {key for key, value in state_of(network).items() if not torch.equal(value, before[key])}
        mine = {name for name in before if any(name.startswith(part) for part in phases[-1])}
        frozen.append(not changed - mine)
        assert recipe.epochs == pytest.approx(4 / 3)
        return history

    monkeypatch.setattr(regimes, "run_epochs", spy)
    history = train_layer_wise(network, stripes(), RECIPE, seed=1)
    assert [{p.split(".")[0] + p.split(".")[1] for p in phase} for phase in phases] == [
        {"backbonestages", "heads0"},
        {"backbonestages", "heads1"},
        {"backbonestages", "backboneclassifier"},
    ]
    stages = [{p.split(".")[2] for p in phase if "stages" in p} for phase in phases]
    assert stages == [{"0"}, {"1"}, {"2"}]
    assert all(frozen), "weights and BatchNorm statistics of the other parts stand still"
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert not network.training


def test_logits_at_an_exit_are_those_of_the_whole():
    for ics in ztw.IC_MODES:
        network, images = small_network(ics), torch.randn(3, 1, 10, 10)
        with torch.no_grad():
            whole = network(images)
            for exit in range(network.exits):
                torch.testing.assert_close(network.logits_at(exit, images), whole[exit], atol=1e-4, rtol=1e-4)
