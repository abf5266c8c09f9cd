"""Test networks against ZTW's released networks: logits of all exits, and gradients of all weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import released
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ztw
from ztw.models.import_weights import load_foreign

FAMILIES: dict[str, Callable[[dict[str, Tensor], Tensor], released.Outputs]] = {
    "resnet20": partial(released.resnet, 3),
    "vgg16_bn": released.vgg16_bn,
    "wide_resnet_32_4": released.wide_resnet_32_4,
    "mobilenet": released.mobilenet,
}


def used(module: nn.Module) -> nn.Module:
    """Set BatchNorm statistics, factors and the mixed pools' shares to other values than those of a new network."""
    for name, value in module.state_dict().items():
        if name.endswith(("running_var", "alpha")):
            value.uniform_(0.3, 1.7)
        elif name.endswith(("running_mean", "bias")):
            value.uniform_(-0.2, 0.2)
    return module.eval()


def new_network(arch: str, size: int, connection: str) -> ztw.EarlyExitNetwork:
    torch.manual_seed(0)
    network = ztw.build_network(ztw.build_backbone(arch, 7, size=size), connection)
    used(network)
    return network


def weights_of(head: nn.Module) -> list[Tensor]:
    """Return a head's weights in the order of definition: convolution, alpha, Linear."""
    return [parameter for _, parameter in head.named_parameters()]


def compare(arch: str, size: int, connection: str) -> None:
    network, images, labels = (
        new_network(arch, size, connection),
        torch.randn(2, 3, size, size),
        torch.tensor([1, 6]),
    )
    ours = network(images)
    seen, own = FAMILIES[arch](network.backbone.state_dict(keep_vars=True), images)
    theirs = [*released.ic_logits([weights_of(head) for head in network.heads], seen, size, connection), own]
    torch.testing.assert_close(ours, torch.stack(theirs), atol=1e-4, rtol=1e-4)
    parameters = list(network.parameters())
    gradients = []
    for logits in (ours, theirs):
        loss = sum((F.cross_entropy(logit, labels) for logit in logits), torch.zeros(()))
        gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    for parameter, our, their in zip(parameters, *gradients, strict=True):
        if their is None:  # alpha of a feature map that is too small to be pooled
            assert our is None or not our.any()
            continue
        assert our is not None
        torch.testing.assert_close(our, their, atol=1e-4 * float(their.abs().max()) + 1e-6, rtol=1e-3)
        assert our.shape == parameter.shape


# all connections on the cheapest family, because connections do not depend on the backbone
@pytest.mark.parametrize(
    ("arch", "connection"),
    [
        *(("resnet20", connection) for connection in ("independent", "cascade", "cascade_detached")),
        ("vgg16_bn", "cascade"),
        ("wide_resnet_32_4", "independent"),
        ("mobilenet", "cascade_detached"),
    ],
)
def test_logits_and_gradients_on_cifar(arch, connection):
    compare(arch, 32, connection)


@pytest.mark.parametrize("arch", FAMILIES)
def test_logits_and_gradients_on_tiny_imagenet(arch):
    compare(arch, 64, "cascade_detached")


def test_the_stop_gradient_makes_a_difference():
    """If it made none, the comparisons above would not test it."""
    gradients = []
    for connection in ("cascade", "cascade_detached"):
        network = new_network("resnet20", 32, connection)
        logits = network(torch.ones(2, 3, 32, 32))[:-1]
        loss = sum((F.cross_entropy(logit, torch.tensor([1, 2])) for logit in logits), torch.zeros(()))
        gradients.append(torch.autograd.grad(loss, weights_of(network.heads[0])[0])[0])
    reached, stopped = gradients
    assert not torch.allclose(reached, stopped)


def test_the_gradient_is_stopped_at_vggs_fully_connected_ic_too():
    """As in the paper. The released code does not stop it."""
    backbone = ztw.build_backbone("vgg16_bn", 7)
    network = ztw.build_network(backbone, "cascade_detached", placement=[12, 13])
    used(network)
    network(torch.ones(2, 3, 32, 32))[1].sum().backward()
    before, after = (next(head.parameters()).grad for head in network.heads)
    assert before is not None
    assert after is not None
    assert not before.any()
    assert after.any()


# A released file's entries, in the order of its definition: (shape, last part of the name)
def conv_entries(outputs: int, inputs: int, kernel: int = 3) -> list[tuple[str, tuple[int, ...]]]:
    return [("weight", (outputs, inputs, kernel, kernel)), ("bias", (outputs,))]


def norm_entries(width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, (width,)) for name in ("weight", "bias", "running_mean", "running_var")]


def released_wide_resnet(num_classes: int) -> dict[str, Tensor]:
    """Return a released Wide ResNet's weights: stem; blocks of norm, conv, norm, conv, shortcut; last norm, Linear."""
    entries, width_in = conv_entries(16, 3), 16
    for width in (64, 128, 256):
        for _ in range(5):
            entries += norm_entries(width_in) + conv_entries(width, width_in)
            entries += norm_entries(width) + conv_entries(width, width)
            entries += conv_entries(width, width_in, 1) if width_in != width else []
            width_in = width
    entries += [*norm_entries(256), ("weight", (num_classes, 256)), ("bias", (num_classes,))]
    torch.manual_seed(1)
    values = {f"layers.{index}.{name}": torch.rand(shape) for index, (name, shape) in enumerate(entries)}
    return {name: value / (value[0].numel() if value.dim() > 1 else 1) for name, value in values.items()}


def test_a_released_wide_resnet_loads_in_order():
    backbone, state = ztw.build_backbone("wide_resnet_32_4", 7).eval(), released_wide_resnet(7)
    assert load_foreign(backbone, state, "released") == "in order"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        _, own = released.wide_resnet_32_4(state, images)
        torch.testing.assert_close(backbone(images), own, atol=1e-4, rtol=1e-4)
