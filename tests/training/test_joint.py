"""Test joint training: the weights of the exits' losses, and the gradients of the backbone."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import pixel_network, same, small_network, state_of, stripes

import ztw
from ztw.data.decoded import ImageSet
from ztw.models.operations import stage_costs
from ztw.training.distillation import Distillation, distillation_loss
from ztw.training.joint import (
    JointLoss,
    equal_shares,
    exit_losses,
    exit_weights,
    own_exit_only,
    scale_gradient,
    shared_logits,
    train_jointly,
)
from ztw.training.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=32, lr=0.01, weight_decay=1e-4, optimizer="adam")


def test_exit_weights_by_hand():
    network = small_network(placement=[0, 2])
    assert exit_weights(network, "uniform")(0.3).tolist() == [1, 1, 1]
    torch.testing.assert_close(exit_weights(network, "depth")(0.3), torch.tensor([1.0, 2.0, 3.0]) / 6)
    assert exit_weights(network, [0.5, 0, 2])(0.3).tolist() == [0.5, 0, 2]
    growing = exit_weights(network, "growing")
    costs = stage_costs(network.backbone).cumsum(0) / ztw.macs(network.backbone)
    torch.testing.assert_close(growing(1.0), torch.tensor([float(costs[0]), float(costs[2]), 1.0]))
    half = torch.tensor([0.01 + float(costs[0]) / 2, 0.01 + float(costs[2]) / 2, 1.0])
    torch.testing.assert_close(growing(0.5), half)


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        (0.01, [0.0115, 0.019, 1.0]),  # epoch 1 of 100: .01 + tau / 100
        (0.5, [0.085, 0.46, 1.0]),
        (0.93, [0.1495, 0.847, 1.0]),
        (0.94, [0.15, 0.856, 1.0]),  # .01 + .141 = .151 is more than tau
        (1.0, [0.15, 0.9, 1.0]),
    ],
)
def test_growing_weights_are_those_of_sdns_code(done, expected):
    """min(tau, .01 + tau e / E) in epoch e of E."""
    network = small_network(placement=[0, 2])
    for shares in ([0.15, 0.9], (0.15, 0.9, 1.0)):  # surplus shares are ignored
        torch.testing.assert_close(exit_weights(network, "growing", shares)(done), torch.tensor(expected))


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


def test_every_exit_sends_an_equal_share_of_the_gradient():
    network = pixel_network("independent")
    images = torch.randn(2, 1, 1, 4, requires_grad=True)
    outputs = shared_logits(network, images, equal_shares)
    assert len(outputs) == 4
    for output in outputs:  # K = 4 exits, each sends a quarter
        (gradient,) = torch.autograd.grad(output.sum(), images, retain_graph=True)
        torch.testing.assert_close(gradient, torch.full_like(images, 0.25))


@pytest.mark.parametrize("shares", [equal_shares, own_exit_only])
def test_shares_change_no_logits(shares):
    network = small_network("boosted")
    images = torch.randn(4, 1, 10, 10)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(shared_logits(network, images, shares)), network(images))


def test_an_exit_changes_only_the_blocks_since_the_previous_exit():
    """Three blocks, an exit after each of the first two: each loss has a gradient in its own block alone."""
    network = small_network("independent", placement=[0, 1])
    outputs = shared_logits(network, torch.randn(4, 1, 10, 10), own_exit_only)
    for exit, output in enumerate(outputs):
        network.zero_grad()
        output.sum().backward(retain_graph=True)
        trained = [any(x.grad is not None for x in part.parameters()) for part in network.backbone.stages]
        assert trained == [block == exit for block in range(3)]


def test_distillation_by_hand():
    """T = 2: the teacher has (3/4, 1/4), the student (1/2, 1/2); KL = 3/4 log(3/2) + 1/4 log(1/2)."""
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]], requires_grad=True)
    student = torch.zeros(1, 2, requires_grad=True)
    loss = distillation_loss(student, teacher, torch.tensor([1]), Distillation(0.25, 2.0))
    compared = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.item() == pytest.approx(0.75 * math.log(2) + 0.25 * 4 * compared)
    loss.backward()
    assert teacher.grad is None, "no gradient reaches the teacher"
    assert student.grad is not None


def test_the_last_exit_teaches_the_others():
    outputs = [torch.zeros(1, 2), torch.tensor([[4.0, 0.0]])]
    labels = torch.tensor([0])
    early, last = exit_losses(outputs, labels, Distillation(1.0, 1.0))
    q = outputs[1].softmax(-1)
    assert early.item() == pytest.approx(float((q * (q.log() - math.log(0.5))).sum()))
    assert last.item() == pytest.approx(float(-q[0, 0].log()))
    assert exit_losses(outputs, labels, None)[0].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("connection", ztw.list_connections())
@pytest.mark.parametrize(
    ("shares", "distillation"),
    [(None, None), (equal_shares, None), (own_exit_only, None), (None, Distillation())],
)
def test_joint_training_learns_with_the_backbone(connection, shares, distillation):
    torch.manual_seed(0)
    network = ztw.build_network(ztw.build_backbone("resnet8", 5, 1, 10), connection)
    backbone, heads = state_of(network.backbone), state_of(network.heads)
    loss = JointLoss(network, exit_weights(network, "growing"), shares, distillation)
    history = train_jointly(loss, stripes(), RECIPE, 1)
    # A teacher that grows more confident may raise the loss
    assert history[-1]["loss"] < history[0]["loss"] or distillation
    assert history[-1]["accuracy"] > 0.4
    assert not same(backbone, state_of(network.backbone))
    assert not same(heads, state_of(network.heads))
    assert not network.training


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(2, [0.5] * 4 + [1.0] * 4), (1.5, [1 / 1.5] * 4 + [1.0] * 2), (0.5, [1.0] * 2)],
)
def test_weights_grow_once_an_epoch(epochs, expected):
    asked: list[float] = []

    def weights(done: float) -> torch.Tensor:
        asked.append(done)
        return torch.tensor([1.0, 2.0])

    network = small_network(placement=[1])
    train_jointly(JointLoss(network, weights), stripes(), Recipe(epochs, 32, 0.01, 0.0), 1)
    assert asked == pytest.approx(expected)


def test_the_loss_is_the_weighted_sum_of_the_exits():
    network = pixel_network("independent")
    network.heads[0] = torch.nn.Linear(4, 4)  # parameters to train, with a learning rate near 0
    images, labels = torch.zeros(4, 1, 1, 4, dtype=torch.uint8), torch.arange(4)
    data = ImageSet(images, labels, 4, (0.0,), (1.0,))
    with torch.no_grad():
        logits = network(torch.zeros(4, 1, 1, 4))
    losses = [torch.nn.functional.cross_entropy(exit, labels).item() for exit in logits]
    weights = torch.tensor([0.5, 0.0, 1.0, 3.0])
    recipe = Recipe(1, 4, 1e-30, 0.0)
    (row,) = train_jointly(JointLoss(network, lambda done: weights), data, recipe, 1)
    assert row["loss"] == pytest.approx(
        sum(w * loss for w, loss in zip(weights.tolist(), losses, strict=True))
    )
    assert row["accuracy"] == 0.25


@pytest.mark.parametrize("kind", [None, 3, (1, 2, 3, "a"), (1, 2, 3, None)])
def test_weights_that_are_no_numbers_are_refused(kind):
    with pytest.raises(ztw.ZtwError, match=r"exit_weights .*: must be uniform, .*, or 4 numbers"):
        exit_weights(small_network(), kind)
