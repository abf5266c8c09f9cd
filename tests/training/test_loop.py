"""Test the training loop: epochs, steps, schedules, progress."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import stripes
from torch import nn

import ztw
from ztw.training.recipe import Recipe, make_optimizer, make_schedule, steps_per_epoch, total_steps
from ztw.training.separate import train_backbone


def test_a_loss_that_is_not_finite_stops_with_a_clear_error():
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    recipe = Recipe(1, 32, 1e30, 0.0)
    with pytest.raises(ztw.ZtwError, match=r"backbone: the loss is .* in epoch 1; lower lr \(now 1e\+30\)"):
        train_backbone(backbone, stripes(), recipe, seed=0)


def test_milestones_and_one_cycle():
    def rates(recipe: Recipe, samples: int) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], recipe.lr)
        schedule = make_schedule(optimizer, recipe, samples)
        seen = []
        for _ in range(total_steps(recipe, samples)):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return seen

    assert rates(Recipe(4, 8, 1.0, 0.0, milestones=(1, 3)), 16) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    )
    cycle = rates(Recipe(2, 8, 1.0, 0.0, schedule="one_cycle"), 400)
    assert max(cycle) == pytest.approx(1.0, rel=1e-2)
    assert cycle[0] < 0.1
    assert cycle[-1] < 0.01
    with pytest.raises(ztw.ZtwError, match="unknown schedule 'step'; known: one_cycle, milestones"):
        rates(Recipe(1, 8, 1.0, 0.0, schedule="step"), 8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adam_of_any_layout(layout):
    """The equations of Adam (arXiv 1412.6980), with the moments in the layout of the gradients."""
    weight = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=layout))
    expected, mean, square = weight.detach().clone(), torch.zeros(8, 4, 3, 3), torch.zeros(8, 4, 3, 3)
    optimizer = make_optimizer([weight], Recipe(1, 8, 0.1, 0.0, optimizer="adam"))
    for step in (1, 2, 3):
        weight.grad = torch.randn(8, 4, 3, 3)
        optimizer.step()
        mean, square = mean.lerp(weight.grad, 0.1), square.lerp(weight.grad**2, 0.001)
        expected -= 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach(), expected)


def test_a_part_of_an_epoch():
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    seen: list[int] = []
    backbone.stages[0].register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    history = train_backbone(backbone, stripes(), Recipe(1.5, 32, 0.01, 0.0, schedule="one_cycle"), seed=0)
    assert seen == [32] * 6, "four batches are an epoch"
    assert [row["epoch"] for row in history] == [1, 2]


@pytest.mark.parametrize("samples", [64, 96, 128, 160, 192, 320, 352, 384])
def test_short_trainings_have_a_schedule(samples):
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    history = train_backbone(
        backbone, stripes(samples), Recipe(1.001, 32, 0.01, 0.0, schedule="one_cycle"), 0
    )
    assert len(history) == 1, "1.001 epochs of a few batches are one epoch"


@pytest.mark.parametrize(("samples", "steps"), [(128, 4), (129, 4), (130, 5), (32, 1), (31, 1), (1, 1)])
def test_a_last_batch_of_one_image_is_dropped(samples, steps):
    recipe = Recipe(2.5, 32, 0.01, 0.0)
    passed = list(stripes(samples).batches(32, torch.Generator().manual_seed(0)))
    assert steps_per_epoch(recipe, samples) == steps == len(passed)
    assert total_steps(recipe, samples) == round(2.5 * steps)
    assert total_steps(Recipe(0.01, 32, 0.01, 0.0), samples) == 1


def test_an_unknown_optimizer():
    with pytest.raises(ztw.ZtwError, match="unknown optimizer 'lion'; known: sgd, adam"):
        make_optimizer([nn.Parameter(torch.zeros(1))], Recipe(1, 32, 0.01, 0.0, optimizer="lion"))


def test_history_and_report_have_the_values_of_each_epoch():
    """A backbone that learns nothing and always predicts class 2: its losses and accuracy are known."""
    linear = nn.Linear(100, 5)
    nn.init.zeros_(linear.weight)
    linear.bias.data = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    classifier = nn.Sequential(nn.Flatten(), linear)
    backbone = ztw.Backbone("constant", [nn.Identity()], classifier, (1, 10, 10))
    lines: list[str] = []
    recipe = Recipe(3, 32, 1e-30, 0.0, milestones=(1, 2), gamma=0.5)
    history = train_backbone(backbone, stripes(100), recipe, seed=0, report=lines.append)
    assert [row["loss"] for row in history] == pytest.approx([math.log(4 + math.e) - 0.2] * 3)
    assert [row["accuracy"] for row in history] == pytest.approx([0.2] * 3)
    assert [row["lr"] for row in history] == pytest.approx([1e-30, 5e-31, 2.5e-31])
    assert lines[-1].startswith("100 %  epoch 3/3  loss 1.705  accuracy 20.0 %")
