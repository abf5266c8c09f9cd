"""Test the training of a backbone alone, and of ICs on a frozen backbone, which must stay unchanged."""

from __future__ import annotations

from dataclasses import replace

import torch
from conftest import same, small_network, state_of, stripes
from torch import nn

import ztw
from ztw.evaluation.predictions import predict_networks
from ztw.training.recipe import Recipe
from ztw.training.separate import train_backbone, train_separately

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, weight_decay=1e-4)


def test_a_backbone_learns_and_its_training_is_reproducible():
    def run():
        torch.manual_seed(0)
        backbone = ztw.build_backbone("resnet8", 5, 1, 10)
        history = train_backbone(backbone, stripes(), Recipe(4, 32, 0.1, 1e-4, schedule="one_cycle"), seed=1)
        return backbone, history

    (first, history), (second, again) = run(), run()
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [row["loss"] for row in history] == [row["loss"] for row in again]
    assert same(state_of(first), state_of(second))
    assert not first.training


class Dropping(nn.Module):
    """A stage with BatchNorm and dropout, both of which must be in eval mode."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage, self.norm, self.drop = stage, nn.BatchNorm2d(16), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.stage(x)))


def test_the_frozen_backbone_stays_unchanged():
    network = small_network("cascade_detached")
    network.backbone.stages[0] = Dropping(network.backbone.stages[0])
    images = torch.randn(8, 1, 10, 10)
    backbone, heads = state_of(network.backbone), state_of(network.heads)
    answer = network.backbone.eval()(images)
    train_separately([network], stripes(), RECIPE, seed=0)
    assert same(backbone, state_of(network.backbone)), "neither weights nor BatchNorm statistics may change"
    assert torch.equal(network.backbone(images), answer), "and dropout must be off"
    assert not any(parameter.requires_grad for parameter in network.backbone.parameters())
    assert not any(torch.equal(heads[name], value) for name, value in state_of(network.heads).items())


def test_dropout_of_the_frozen_backbone_can_stay_on():
    """The features then differ from step to step, but BatchNorm's statistics stay unchanged."""
    torch.manual_seed(0)
    network = small_network()
    dropping = Dropping(network.backbone.stages[0])
    network.backbone.stages[0] = dropping
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    dropping.drop.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    backbone = state_of(network.backbone)
    train_separately([network], stripes(), replace(RECIPE, frozen_dropout=True), seed=0)
    assert len(seen) == 8, "a batch of 32 at a time, two epochs of 128"
    dropped = [((output == 0) & (features != 0)).float().mean().item() for features, output in seen]
    assert all(0.3 < share < 0.7 for share in dropped)
    assert same(backbone, state_of(network.backbone))
    assert not dropping.drop.training, "it ends in eval mode"


def test_sets_trained_together_equal_sets_trained_alone():
    def networks(names):
        torch.manual_seed(3)
        backbone = ztw.build_backbone("resnet8", 5, 1, 10).eval()
        built = []
        for name in names:
            torch.manual_seed(4)
            built.append(ztw.build_network(backbone, name))
        return built

    together = networks(["independent", "cascade_detached"])
    train_separately(together, stripes(), RECIPE, seed=5)
    for index, name in enumerate(["independent", "cascade_detached"]):
        (alone,) = networks([name])
        train_separately([alone], stripes(), RECIPE, seed=5)
        assert same(state_of(alone.heads), state_of(together[index].heads))


def test_ics_learn_better_than_chance():
    network = small_network()
    images = stripes()
    (history,) = train_separately([network], images, Recipe(8, 32, 0.01, 0.0), seed=0)
    (logits,), labels = predict_networks([network], images)
    assert history[-1]["loss"] < history[0]["loss"]
    assert ztw.exit_accuracy(logits, labels)[:-1].min() > 0.5
    assert torch.equal(labels, images.labels)
