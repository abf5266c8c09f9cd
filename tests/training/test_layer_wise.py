"""Test layer-wise training: each phase trains its part, and all other parts stay unchanged."""

from __future__ import annotations

import pytest
import torch
from conftest import small_network, state_of, stripes
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import ztw
from ztw.training.layer_wise import train_layer_wise
from ztw.training.recipe import Recipe

# The parts of a ResNet-8 with exits after two of its three blocks, by exit
PARTS = [
    ("backbone.stages.0.", "heads.0."),
    ("backbone.stages.1.", "heads.1."),
    ("backbone.stages.2.", "backbone.classifier."),
]


class Watch:
    """A hook that records, after every step of an optimizer, its parameters and what has changed in a network."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.before = network, state_of(network)
        self.names = {id(parameter): name for name, parameter in network.named_parameters()}
        self.steps: list[tuple[set[str], set[str]]] = []

    def __call__(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        trained = {self.names[id(item)] for group in optimizer.param_groups for item in group["params"]}
        after = state_of(self.network)
        changed = {name for name in after if not torch.equal(after[name], self.before[name])}
        self.steps.append((trained, changed))
        self.before = after


@pytest.mark.parametrize("connection", ztw.list_connections())
def test_layer_wise_training_trains_exit_after_exit(connection):
    network = small_network(connection, placement=[0, 1])
    watch = Watch(network)
    handle = register_optimizer_step_post_hook(watch)
    recipe = Recipe(epochs=4, batch_size=32, lr=0.01, weight_decay=1e-4, optimizer="adam")
    try:
        history = train_layer_wise(network, stripes(), recipe, seed=1)
    finally:
        handle.remove()
    assert len(watch.steps) == 3 * 5, "four steps are an epoch, and each phase has 4 / 3 of them"
    parameters = {name for name, _ in network.named_parameters()}
    for number, (trained, changed) in enumerate(watch.steps):
        part = PARTS[number // 5]
        assert trained == {name for name in parameters if name.startswith(part)}
        assert trained & changed
        assert all(name.startswith(part) for name in changed), "weights and BatchNorm statistics of the rest"
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_each_phase_has_its_share_of_the_schedule():
    network = small_network(placement=[0, 1])
    recipe = Recipe(epochs=6, batch_size=64, lr=0.1, weight_decay=0.0, milestones=(3,))
    history = train_layer_wise(network, stripes(), recipe, seed=1)
    assert [row["lr"] for row in history] == pytest.approx([0.1, 0.01] * 3)
