"""MACs against counts worked out by hand. ptflops counts the addition of a bias as one operation."""

from __future__ import annotations

import pytest
import torch

import ztw
from ztw.costs import stage_macs


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, kernel: int, side: int, bias: bool = False) -> int:
    return (inputs * kernel**2 + bias) * outputs * side**2


def test_resnet8_by_hand():
    backbone = ztw.build_backbone("resnet8", classes=10, channels=3, size=32)
    first = conv(3, 16, 3, 32) + 2 * conv(16, 16, 3, 32)
    second = conv(16, 32, 3, 16) + conv(32, 32, 3, 16) + conv(16, 32, 1, 16)
    third = conv(32, 64, 3, 8) + conv(64, 64, 3, 8) + conv(32, 64, 1, 8)
    assert stage_macs(backbone).tolist() == [first, second, third]
    assert ztw.backbone_macs(backbone) == first + second + third + linear(64, 10)


@pytest.mark.parametrize("ics", ["independent", "cascade_detached"])
def test_heads_cascade_and_ensemble_are_counted(ics):
    backbone = ztw.build_backbone("resnet8", classes=10, channels=3, size=32)
    network = ztw.build_network(backbone, ics, placement=[0, 2])
    stages = stage_macs(backbone)
    sees = 10 if ics == "cascade_detached" else 0
    head1 = conv(16, 16, 3, 32, bias=True) + linear(16 * 16, 10)
    head2 = conv(64, 64, 3, 8, bias=True) + linear(64 * 16 + sees, 10)
    both = stages.sum() + head1 + head2
    plain = [stages[0] + head1, both, both + linear(64, 10)]
    assert ztw.macs(network).tolist() == [float(value) for value in plain]
    network.ensemble = ztw.fit_ensemble(torch.randn(3, 40, 10), torch.arange(40) % 10)
    ensembled = [plain[0] + 10, plain[1] + 30, plain[2] + 60]  # members * classes, cumulated
    assert ztw.macs(network).tolist() == [float(value) for value in ensembled]


def test_counting_leaves_the_network_as_it_was():
    network = ztw.build_network(ztw.build_backbone("resnet8")).train()
    before = set(dir(network.backbone.stages[0]))
    ztw.macs(network)
    assert network.training
    assert set(dir(network.backbone.stages[0])) == before


def test_another_input_size_is_refused():
    network = ztw.build_network(ztw.build_backbone("resnet8", size=32))
    with pytest.raises(
        ztw.ZtwError, match=r"input size \(3, 64, 64\): this network is built for \(3, 32, 32\)"
    ):
        ztw.macs(network, (3, 64, 64))


def test_parameter_counts_of_the_family():
    # the released base network: 0.856 M on CIFAR-10
    count = sum(p.numel() for p in ztw.build_backbone("resnet56").parameters())
    assert count == pytest.approx(0.856e6, rel=5e-3)
