"""Test folded BatchNorms: equal predictions with fewer modules, and the network itself unchanged."""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

import ztw
from ztw.models import folding
from ztw.models.exported import ExportedPart


def used(backbone: ztw.Backbone) -> ztw.Backbone:
    """Set BatchNorm statistics and factors to values other than 0 and 1."""
    torch.manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            assert isinstance(module.running_mean, Tensor)
            assert isinstance(module.running_var, Tensor)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return backbone.eval()


def norms(module: nn.Module) -> int:
    """Count the BatchNorms, as modules and in graphs for inference."""
    found = sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    parts = [part for part in module.modules() if isinstance(part, ExportedPart)]
    return found + sum(
        node.target == torch.ops.aten.batch_norm.default for part in parts for node in part.eval_graph.nodes
    )


@pytest.mark.parametrize(
    "arch", ["resnet8", "vgg16_bn", "wide_resnet_32_4", "mobilenet", "torchvision/resnet18"]
)
@torch.no_grad()
def test_folding_changes_no_prediction(arch):
    backbone = used(ztw.build_backbone(arch))
    network = ztw.build_network(backbone, "cascade_detached", placement="every 2").eval()
    before = norms(network)
    folded = ztw.fold_batch_norm(network)
    assert norms(network) == before
    # a Wide ResNet normalises before its convolutions; only a BatchNorm that follows a convolution is folded
    assert norms(folded) == 0 or arch == "wide_resnet_32_4"
    assert norms(folded) < before
    images = torch.randn(4, *backbone.input_shape)
    torch.testing.assert_close(folded(images), network(images), atol=1e-3, rtol=1e-3)
    rule = ztw.MaxSoftmax(0.2)
    assert folded.infer(images, rule).exit_index.equal(network.infer(images, rule).exit_index)
    torch.testing.assert_close(ztw.fold_batch_norm(backbone)(images), backbone(images), atol=1e-3, rtol=1e-3)


class Branching(nn.Module):
    """A module that torch.export cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Sequential(nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.mean() > 0 else x


def test_a_stage_that_cannot_be_exported_is_named():
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    backbone = ztw.Backbone("mine", [nn.Identity(), Branching()], classifier, (3, 4, 4))
    with pytest.raises(ztw.ZtwError, match="mine: a stage cannot be exported to fold its BatchNorms"):
        ztw.fold_batch_norm(backbone)


class Twice(nn.Module):
    """Convolutions that are used twice, each time with another BatchNorm or with none."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.shared, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.read, self.third = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.tied(x))
        x = self.second(self.shared(self.first(self.shared(x))))
        y = self.read(x)
        return self.third(y) + y


@torch.no_grad()
def test_a_convolution_that_is_used_twice_is_folded_for_each_use():
    stage = Twice()
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(48, 48),
        nn.Unflatten(1, (4, 12)),
        nn.Linear(12, 4),
        nn.BatchNorm1d(4),
        nn.Flatten(),
    )
    backbone = used(ztw.Backbone("mine", [stage, stage], classifier, (3, 4, 4)))
    images = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(ztw.fold_batch_norm(backbone)(images), backbone(images))
    folded = ztw.fold_batch_norm(ztw.Backbone("mine", [stage], classifier, (3, 4, 4)))
    assert norms(folded) == 1  # the last one, because something else reads its convolution


def test_other_objects_are_refused():
    with pytest.raises(
        ztw.ZtwError, match="fold_batch_norm: Linear, must be an EarlyExitNetwork or a Backbone"
    ):
        ztw.fold_batch_norm(nn.Linear(2, 2))  # type: ignore[type-var]


class Doubling(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Rectifying(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda part, given, output: output.relu())
    return module


def hooked_before(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(lambda part, given: (given[0] + 1,))
    return module


def with_another_forward(module: nn.Module) -> nn.Module:
    before = module.forward
    module.forward = lambda x: before(x).relu()
    return module


def backbone_of(*parts: nn.Module) -> ztw.Backbone:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    return used(ztw.Backbone("mine", [nn.Sequential(*parts)], classifier, (3, 4, 4)))


# parts, and the number of BatchNorms that cannot be folded
MORE_THAN_THEIR_CLASS = {
    "subclass of BatchNorm": lambda: ((nn.Conv2d(3, 3, 1), Doubling(3)), 0),
    "subclass of a convolution": lambda: ((Rectifying(3, 3, 1), nn.BatchNorm2d(3)), 1),
    "hook after the BatchNorm": lambda: ((nn.Conv2d(3, 3, 1), hooked(nn.BatchNorm2d(3))), 0),
    "hook before the BatchNorm": lambda: ((nn.Conv2d(3, 3, 1), hooked_before(nn.BatchNorm2d(3))), 1),
    "hook after the convolution": lambda: ((hooked(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)), 1),
    "forward of its own": lambda: ((nn.Conv2d(3, 3, 1), with_another_forward(nn.BatchNorm2d(3))), 0),
}


@pytest.mark.parametrize("parts", MORE_THAN_THEIR_CLASS.values(), ids=MORE_THAN_THEIR_CLASS)
@torch.no_grad()
def test_what_a_module_does_besides_normalising_stays(parts):
    made, left = parts()
    backbone = backbone_of(*made)
    images = torch.randn(5, 3, 4, 4)
    folded = ztw.fold_batch_norm(backbone)
    torch.testing.assert_close(folded(images), backbone(images))
    assert norms(folded) == left


@torch.no_grad()
def test_a_batch_norm_that_contains_the_activation_is_folded_without_it():
    """As in timm's EfficientNet: BatchNormAct2d also applies the activation."""
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), BatchNormAct2d(3)), classifier).eval()
    backbone = used(ztw.as_backbone(model, (3, 4, 4), at=["0"]))
    images = torch.randn(5, 3, 4, 4)
    folded = ztw.fold_batch_norm(backbone)
    torch.testing.assert_close(folded(images), backbone(images))
    assert norms(folded) == 0


@torch.no_grad()
def test_a_hook_on_a_stage_stays():
    backbone = backbone_of(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    hooked(backbone.stages[0])
    images = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(ztw.fold_batch_norm(backbone)(images), backbone(images))


def test_a_copy_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(folding, "fuse_conv_bn_weights", lambda weight, bias, *rest: (weight, rest[0]))
    backbone = backbone_of(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(ztw.ZtwError, match=r"mine: folded BatchNorms .* by up to \d"):
        ztw.fold_batch_norm(backbone)
