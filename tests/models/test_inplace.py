"""Test modules that work in place or need contiguous memory: they disturb neither other modules nor the caller."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ztw
from ztw.batch import InputSpec
from ztw.data.decoded import ImageSet
from ztw.evaluation.predictions import predict_networks
from ztw.models.cut import cut_model


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def plus_equals(x: Tensor) -> Tensor:
    x += 0.3
    return x


def set_items(x: Tensor) -> Tensor:
    x[:, 0] = 0.7
    return x


def behind_autograd(x: Tensor) -> Tensor:
    x.data.mul_(0.5)
    return x


KINDS = [nn.ReLU, nn.ReLU6, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Hardtanh]
KINDS += [nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.RReLU]
IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: lambda kind=kind: kind(inplace=True)  # type: ignore[misc]
        for kind in KINDS
    },
    "Threshold": lambda: nn.Threshold(0.1, 0.0, inplace=True),
    "functional": lambda: Apply(lambda x: F.relu(x, inplace=True)),
    "method": lambda: Apply(lambda x: x.mul_(0.5)),
    "+=": lambda: Apply(plus_equals),
    "items": lambda: Apply(set_items),
    "behind autograd": lambda: Apply(behind_autograd),
    "through a view": lambda: Apply(lambda x: x.flatten(1).sigmoid_().view_as(x)),
    "behind what does nothing": lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.5), nn.ReLU(inplace=True)),
}


def network_of(
    first: Callable[[], nn.Module], head: Callable[[], nn.Module] = nn.Identity, connection="independent"
):
    """Return a network whose stages and classifier start with the module `first`, and whose heads start with `head`."""
    torch.manual_seed(1)

    def stage(channels: int) -> nn.Module:
        return nn.Sequential(first(), nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6))

    classifier = nn.Sequential(first(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4))
    backbone = ztw.Backbone("toy", [stage(3), stage(6), stage(6)], classifier, (3, 8, 8))
    heads = [nn.Sequential(head(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)) for _ in range(3)]
    network = ztw.EarlyExitNetwork(backbone, heads, (0, 1, 2), connection).eval()
    return network.to(memory_format=torch.channels_last)


def check(network: ztw.EarlyExitNetwork, expected: Tensor | None = None) -> Tensor:
    """Check that forward, infer (single images, batches) and logits of single exits agree, and images are unchanged."""
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    with torch.no_grad():
        logits = network(images)
        assert torch.equal(network(images), logits)
        features = [feature.clone() for feature in network.backbone.features(images)]
        kept = list(network.backbone.features(images))
        assert all(map(torch.equal, features, kept)), "what was yielded is not overwritten"
        for exit in range(4):
            threshold = [2.0] * exit + [-1.0] * (4 - exit)
            result = network.infer(images, ztw.MaxSoftmax(threshold))
            torch.testing.assert_close(result.logits, logits[exit], atol=1e-5, rtol=1e-4)
            single = torch.cat(
                [network.infer(image[None], ztw.MaxSoftmax(threshold)).logits for image in images]
            )
            torch.testing.assert_close(single, logits[exit], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(network.logits_at(exit, images), logits[exit], atol=1e-5, rtol=1e-4)
    assert torch.equal(images, before)
    if expected is not None:
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    return logits


def slow(network: ztw.EarlyExitNetwork) -> Tensor:
    """Compute the expected logits: every module gets a copy of its input."""
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    with torch.no_grad():
        for stage, head in zip(network.backbone.stages, network.heads, strict=True):
            images = stage(images.clone())
            outputs.append(head(images.clone()))
        return torch.stack([*outputs, network.backbone.classifier(images.clone())])


@pytest.mark.parametrize("name", IN_PLACE)
def test_stages_and_classifiers_that_begin_in_place(name):
    network = network_of(IN_PLACE[name])
    check(network, slow(network))


@pytest.mark.parametrize("name", IN_PLACE)
def test_heads_that_begin_in_place(name):
    network = network_of(nn.Identity, IN_PLACE[name])
    check(network, slow(network))


@pytest.mark.parametrize(
    "change", [copy.deepcopy, ztw.fold_batch_norm, lambda n: pickle.loads(pickle.dumps(n))]
)
def test_copies_and_folded_networks_compute_the_same(change):
    network = network_of(IN_PLACE["ReLU"])
    check(change(network), slow(network))


def test_networks_that_share_a_backbone_do_not_disturb_each_other():
    network = network_of(IN_PLACE["ReLU"], IN_PLACE["SiLU"])
    other = ztw.EarlyExitNetwork(network.backbone, list(network.heads), (0, 1, 2), "independent")
    images = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8)
    data = ImageSet(images, torch.zeros(12, dtype=torch.long), 4, (0.5,) * 3, (0.2,) * 3)
    with torch.no_grad():
        expected = network(next(data.batches(12))[0])
    for logits in predict_networks([network, other], data)[0]:
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.activation, self.conv = nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.activation(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(2), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.blocks(x)).flatten(1))


@pytest.mark.parametrize("change", [lambda n: n, copy.deepcopy, ztw.fold_batch_norm])
def test_a_traced_model_of_blocks_that_begin_in_place(change):
    backbone = cut_model(Model(), "mine", InputSpec.of_shape((3, 8, 8)), 4)
    network = ztw.build_network(backbone).eval()
    assert len(network.heads) == 3
    check(change(network), slow(network))


def test_gradients_are_those_of_copies():
    network = network_of(IN_PLACE["SiLU"], IN_PLACE["ReLU"]).train()
    images = torch.randn(6, 3, 8, 8, requires_grad=True)
    network(images).square().sum().backward()
    found = images.grad
    images.grad = None
    hidden, outputs = images, []
    for stage, head in zip(network.backbone.stages, network.heads, strict=True):
        hidden = stage(hidden.clone())
        outputs.append(head(hidden.clone()))
    torch.stack([*outputs, network.backbone.classifier(hidden.clone())]).square().sum().backward()
    torch.testing.assert_close(found, images.grad)


class FunctionalDropout(nn.Module):
    """A module that overwrites its input in training mode only."""

    def __init__(self, p: float, inplace: bool) -> None:
        super().__init__()
        self.p, self.inplace = p, inplace

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training, self.inplace)


@pytest.mark.parametrize(
    "kind", [FunctionalDropout, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout]
)
def test_dropout_in_place_does_not_reach_the_features(kind):
    network = network_of(lambda: kind(0.5, inplace=True), lambda: kind(0.5, inplace=True)).train()
    images = torch.randn(6, 3, 8, 8)
    before = images.clone()
    kept: list[Tensor] = []
    for feature in network.backbone.features(images):
        kept.append(feature)
        network.heads[len(kept) - 1](feature)
        assert torch.equal(feature, kept[-1])
    copies = [feature.clone() for feature in kept]
    network.exit_logits(kept)
    assert all(map(torch.equal, copies, kept))
    assert torch.equal(images, before)


def test_nothing_is_copied_for_networks_that_overwrite_nothing():
    for network in (ztw.build_network(ztw.build_backbone("resnet8")), network_of(nn.Identity)):
        parts = [*network.backbone.stages, network.backbone.classifier, *network.heads]
        assert not any(part._forward_pre_hooks for part in parts)


def test_building_leaves_weights_statistics_and_modes_alone():
    head = nn.Sequential(nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    head[0].eval()
    backbone = network_of(nn.Identity).backbone
    state = torch.get_rng_state()
    network = ztw.EarlyExitNetwork(backbone, [head], (1,), "independent")
    assert [module.training for module in head] == [False, True, True, True]
    assert head[0].num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("function" in name or "hook" in name for name in network.state_dict())


class View(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class Viewed(nn.Module):
    """Flattens a convolution's output by view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(6, 5, 3), nn.Linear(180, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(x.view(x.size(0), -1))


@pytest.mark.parametrize("change", [lambda n: n, copy.deepcopy, ztw.fold_batch_norm])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("where", ["classifier", "stage", "head"])
def test_flattening_by_view_works_after_channels_last(where, inner, change):
    torch.manual_seed(0)
    flat: nn.Module = Viewed() if inner else nn.Sequential(nn.ReLU(inplace=True), View(), nn.Linear(384, 4))
    stages: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())]
    classifier: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    heads: list[nn.Module] = []
    if where == "stage":
        stages.append(flat)
        classifier = nn.Linear(4, 4)
    elif where == "classifier":
        classifier = flat
    else:
        heads = [flat]
    backbone = ztw.Backbone("toy", stages, classifier, (3, 8, 8))
    plain = copy.deepcopy(backbone).eval()
    network = ztw.EarlyExitNetwork(backbone, heads, (0,) * len(heads), "independent").eval()
    network = change(network.to(memory_format=torch.channels_last))
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        for given in (images, images.contiguous(memory_format=torch.channels_last)):
            logits = network(given)
            torch.testing.assert_close(logits[-1], plain(images), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(network.infer(given, ztw.MaxSoftmax(2.0)).logits, logits[-1])


def test_a_real_mistake_in_a_part_is_raised_as_it_is():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        ztw.Backbone("toy", [nn.Conv2d(3, 6, 3)], nn.Sequential(nn.Flatten(), nn.Linear(7, 4)), (3, 8, 8))
