"""Test MACs against hand-computed counts. ptflops counts the addition of a bias as one operation."""

from __future__ import annotations

import pytest
import torch

import ztw
from ztw.models.operations import module_macs, stage_costs
from ztw.models.published_counter import module_operations

pytestmark = pytest.mark.usefixtures("uninitialised")  # costs depend on shapes alone


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, kernel: int, side: int, bias: bool = False) -> int:
    return (inputs * kernel**2 + bias) * outputs * side**2


def test_resnet8_by_hand():
    backbone = ztw.build_backbone("resnet8", num_classes=10, channels=3, size=32)
    first = conv(3, 16, 3, 32) + 2 * conv(16, 16, 3, 32)
    second = conv(16, 32, 3, 16) + conv(32, 32, 3, 16) + conv(16, 32, 1, 16)
    third = conv(32, 64, 3, 8) + conv(64, 64, 3, 8) + conv(32, 64, 1, 8)
    assert stage_costs(backbone).tolist() == [first, second, third]
    assert ztw.macs(backbone) == first + second + third + linear(64, 10)


@pytest.mark.parametrize("connection", ["independent", "cascade_detached"])
def test_heads_cascade_and_ensemble_are_counted(connection):
    backbone = ztw.build_backbone("resnet8", num_classes=10, channels=3, size=32)
    network = ztw.build_network(backbone, connection, placement=[0, 2])
    stages = stage_costs(backbone)
    sees = 10 if connection == "cascade_detached" else 0
    head1 = conv(16, 16, 3, 32, bias=True) + linear(16 * 16, 10)
    head2 = conv(64, 64, 3, 8, bias=True) + linear(64 * 16 + sees, 10)
    both = stages.sum() + head1 + head2
    plain = [stages[0] + head1, both, both + linear(64, 10)]
    assert ztw.macs(network).tolist() == [float(value) for value in plain]
    network.ensemble = ztw.fit_ensemble(torch.randn(3, 40, 10), torch.arange(40) % 10)
    ensembled = [plain[0] + 10, plain[1] + 30, plain[2] + 60]  # plus members * classes, cumulative
    assert ztw.macs(network).tolist() == [float(value) for value in ensembled]


def test_counting_leaves_the_network_as_it_was():
    network = ztw.build_network(ztw.build_backbone("resnet8")).train()
    before = set(dir(network.backbone.stages[0]))
    ztw.macs(network)
    assert network.training
    assert set(dir(network.backbone.stages[0])) == before


# The released base networks: millions of parameters at 32x32 with 10 classes and at 64x64 with 200, and
# operations (in 10^9, 32x32, 10 classes) by the published counter.
PUBLISHED = [
    ("resnet56", 0.856, 0.868, 0.25257),
    ("vgg16_bn", 15.254, 21.223, 0.62831),
    ("wide_resnet_32_4", 7.404, 7.453, 2.37461),
    ("mobilenet", 3.217, 3.412, 0.75041),
]


@pytest.mark.parametrize(("arch", "cifar", "tiny", "operations"), PUBLISHED)
def test_base_networks_are_the_published_ones(arch, cifar, tiny, operations):
    for num_classes, size, millions in ((10, 32, cifar), (200, 64, tiny)):
        backbone = ztw.build_backbone(arch, num_classes, size=size)
        count = sum(parameter.numel() for parameter in backbone.parameters())
        assert count / 1e6 == pytest.approx(millions, rel=1e-3)
    base = ztw.macs(ztw.build_backbone(arch), "published")
    assert base / 1e9 == pytest.approx(operations, rel=1e-4)


@pytest.mark.parametrize(
    ("arch", "first", "last"), [("resnet56", 0.06, 1.5071), ("vgg16_bn", 0.1263, 1.9105)]
)
def test_published_costs_of_exits(arch, first, last):
    network = ztw.build_network(ztw.build_backbone(arch))
    relative = ztw.macs(network, "published") / ztw.macs(network.backbone, "published")
    assert relative[0].item() == pytest.approx(first, abs=5e-5)
    assert relative[-1].item() == pytest.approx(last, abs=5e-5)


def test_the_trap_of_the_published_counter():
    # a depthwise 3x3 on 8 channels of 4x4: 9 products per value, wrongly multiplied by the 8 groups again
    module = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    assert module_operations(module, torch.zeros(1, 8, 4, 4)) == 128 * (2 * 9 - 1) * 8
    assert module_macs(module, torch.zeros(1, 8, 4, 4)) == 128 * 9


def test_published_operations_of_an_ensemble():
    network = ztw.build_network(ztw.build_backbone("resnet8"), placement=[0, 2])
    plain = ztw.macs(network, "published")
    network.ensemble = ztw.fit_ensemble(torch.randn(3, 40, 10), torch.arange(40) % 10)
    # (m+1)*C + m*C + C for m = 0, 1, 2, cumulative
    assert (ztw.macs(network, "published") - plain).tolist() == [20.0, 60.0, 120.0]


def test_attention_is_counted():
    """torchvision states 17.56 G for ViT-B/16; the paper's resnet18 figure is 1.81 G."""
    vit = ztw.build_backbone("torchvision/vit_b_16", 1000, 3, 224)
    assert ztw.macs(vit) == pytest.approx(17.56e9, rel=0.003)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_boosted_exit_adds_one_multiplication_a_class():
    backbone = ztw.build_backbone("resnet8")
    plain, boosted = (
        ztw.macs(ztw.build_network(backbone, connection)) for connection in ("independent", "boosted")
    )
    assert (boosted - plain).tolist() == [0, 10, 20, 30]


def test_costs_are_counted_in_inference_mode_too():
    network = ztw.build_network(ztw.build_backbone("resnet8"), placement=[1])
    outside = ztw.macs(network)
    with torch.inference_mode():
        assert torch.equal(ztw.macs(network), outside)


def test_wrong_arguments():
    backbone = ztw.build_backbone("resnet8")
    with pytest.raises(ztw.ZtwError, match="unknown counter 'flops'; known: ztw, published"):
        ztw.macs(backbone, "flops")
    with pytest.raises(ztw.ZtwError, match="macs: Linear, must be an EarlyExitNetwork or a Backbone"):
        ztw.macs(torch.nn.Linear(2, 2))  # type: ignore[call-overload]
