"""Training: what learns, what stands still, where gradients go."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from conftest import small_network
from torch import nn

import ztw
from ztw.data.decoded import ImageSet
from ztw.device import autocast
from ztw.evaluation.predictions import predict
from ztw.training import loop as training
from ztw.training.loop import Recipe, make_schedule
from ztw.training.separate import train_backbone, train_ics

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, weight_decay=1e-4)


def stripes(count: int = 128) -> ImageSet:
    """Five classes told apart by where a bright row is."""
    labels = torch.arange(count) % 5
    images = torch.randint(60, (count, 1, 10, 10), generator=torch.Generator().manual_seed(0))
    images[torch.arange(count), 0, 2 * labels] = 250
    return ImageSet(images.byte(), labels, 5, (0.3,), (0.3,))


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


def test_a_backbone_learns_and_repeats_itself():
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
    """A stage with BatchNorm and dropout, which both must stand still."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage, self.norm, self.drop = stage, nn.BatchNorm2d(16), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.stage(x)))


def test_the_frozen_backbone_stands_still():
    network = small_network("cascade_detached")
    network.backbone.stages[0] = Dropping(network.backbone.stages[0])
    images = torch.randn(8, 1, 10, 10)
    backbone, heads = state_of(network.backbone), state_of(network.heads)
    answer = network.backbone.eval()(images)
    train_ics([network], stripes(), RECIPE, seed=0)
    assert same(backbone, state_of(network.backbone)), "neither weights nor BatchNorm statistics may change"
    assert torch.equal(network.backbone(images), answer), "and dropout must be off"
    assert not any(parameter.requires_grad for parameter in network.backbone.parameters())
    assert not any(torch.equal(heads[name], value) for name, value in state_of(network.heads).items())


@pytest.mark.parametrize(("ics", "reaches"), [("cascade", True), ("cascade_detached", False)])
def test_where_the_cascade_sends_its_gradient(ics, reaches):
    network = small_network(ics)
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


def test_sets_trained_together_are_what_they_are_alone():
    def networks(names):
        torch.manual_seed(3)
        backbone = ztw.build_backbone("resnet8", 5, 1, 10).eval()
        built = []
        for name in names:
            torch.manual_seed(4)
            built.append(ztw.build_network(backbone, name))
        return built

    together = networks(["independent", "cascade_detached"])
    train_ics(together, stripes(), RECIPE, seed=5)
    for index, name in enumerate(["independent", "cascade_detached"]):
        (alone,) = networks([name])
        train_ics([alone], stripes(), RECIPE, seed=5)
        assert same(state_of(alone.heads), state_of(together[index].heads))


def test_ics_learn_better_than_chance():
    network = small_network()
    images = stripes()
    (history,) = train_ics([network], images, Recipe(8, 32, 0.01, 0.0), seed=0)
    (logits,), labels = predict([network], images)
    assert history[-1]["loss"] < history[0]["loss"]
    assert ztw.exit_accuracy(logits, labels)[:-1].min() > 0.5
    assert torch.equal(labels, images.labels)


def test_a_loss_that_is_not_finite_stops_with_a_clear_error():
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    recipe = Recipe(1, 32, 1e30, 0.0)
    with pytest.raises(ztw.ZtwError, match=r"backbone: the loss is .* in epoch 1; lower lr \(now 1e\+30\)"):
        train_backbone(backbone, stripes(), recipe, seed=0)


def test_milestones_and_one_cycle():
    def rates(recipe: Recipe, steps: int) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], recipe.lr)
        schedule = make_schedule(optimizer, recipe, steps)
        seen = []
        for _ in range(int(recipe.epochs) * steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return seen

    assert rates(Recipe(4, 1, 1.0, 0.0, milestones=(1, 3)), 2) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    )
    cycle = rates(Recipe(2, 1, 1.0, 0.0, schedule="one_cycle"), 50)
    assert max(cycle) == pytest.approx(1.0, rel=1e-2)
    assert cycle[0] < 0.1
    assert cycle[-1] < 0.01
    with pytest.raises(ztw.ZtwError, match="unknown schedule 'step'; known: one_cycle, milestones"):
        rates(Recipe(1, 1, 1.0, 0.0, schedule="step"), 1)


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


def test_logits_are_float32_under_bf16():
    network = small_network()
    with autocast(torch.device("cpu"), "bf16"), torch.no_grad():
        logits = network(torch.randn(4, 1, 10, 10))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float()), "more than bfloat16's eight bits"


class Compiler:
    """Stands in for torch.compile: counts the calls of what it made, which work or not."""

    def __init__(self, works: bool) -> None:
        self.works, self.calls = works, 0

    def __call__(self, function):
        def fast(images):
            self.calls += 1
            if not self.works:
                raise torch._dynamo.exc.BackendCompilerFailed("inductor", OSError("no compiler"), None)
            return function(images)

        return fast


def trained_with(compile: bool | Literal["auto"], steps: int, lines: list[str] | None = None) -> nn.Module:
    """A backbone after four steps of 32 images and one of 5, where `steps` make compiling pay."""
    torch.manual_seed(0)
    backbone = ztw.build_backbone("resnet8", 5, 1, 10)
    report = None if lines is None else lines.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "WORTH_COMPILING", steps)
        train_backbone(backbone, stripes(133), Recipe(1, 32, 0.05, 0.0, compile=compile), 0, report)
    return backbone


@pytest.mark.parametrize(
    ("compile", "steps", "calls"), [(True, 99, 4), ("auto", 5, 4), ("auto", 6, 0), (False, 1, 0)]
)
def test_what_is_compiled(monkeypatch, compile, steps, calls):
    compiler = Compiler(works=True)
    monkeypatch.setattr(torch, "compile", compiler)
    trained_with(compile, steps)
    assert compiler.calls == calls, "full batches only"


@pytest.mark.parametrize(("compile", "calls"), [("auto", 0), (True, 4)])
def test_ics_are_compiled_on_request_only(monkeypatch, compile, calls):
    compiler = Compiler(works=True)
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(training, "WORTH_COMPILING", 1)
    train_ics([small_network()], stripes(), Recipe(1, 32, 0.05, 0.0, compile=compile), 0)
    assert compiler.calls == calls


def test_without_a_compiler_auto_goes_on(monkeypatch):
    plain = trained_with(False, 1)
    lines: list[str] = []
    compiler = Compiler(works=False)
    monkeypatch.setattr(torch, "compile", compiler)
    assert same(state_of(plain), state_of(trained_with("auto", 1, lines)))
    assert compiler.calls == 1, "it is not tried again"
    assert "it needs a C++ compiler; training goes on without" in lines[0]
    with pytest.raises(
        ztw.ZtwError, match=r"compile: failed \(.*\); it needs a C\+\+ compiler, or set it to false"
    ):
        trained_with(True, 1)
