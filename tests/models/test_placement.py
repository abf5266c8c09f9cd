"""Test the placement of heads: every n-th block, listed blocks, shares of the cost."""

from __future__ import annotations

import pytest

import ztw
from ztw.models.operations import stage_costs
from ztw.models.placement import resolve_placement


@pytest.mark.parametrize(
    ("placement", "blocks"),
    [("all", (0, 1, 2)), ("every 2", (1,)), ("every 3", (2,)), ([0, 2], (0, 2)), ((1,), (1,))],
)
def test_blocks(placement, blocks):
    assert resolve_placement(ztw.build_backbone("resnet8"), placement) == blocks


def test_a_share_of_the_cost_is_taken_to_the_nearest_block():
    backbone = ztw.build_backbone("resnet8")
    done = (stage_costs(backbone).cumsum(0) / ztw.macs(backbone)).tolist()
    nearer = 0.6 * done[0] + 0.4 * done[1]
    assert resolve_placement(backbone, [nearer]) == (0,)
    assert resolve_placement(backbone, [nearer, 1.0]) == (0, 2)
    assert resolve_placement(backbone, [0.4 * done[0] + 0.6 * done[1]]) == (1,)


# Where SDN's code has its exits, blocks counted from 0
SDN_BLOCKS = {
    "resnet56": (3, 7, 11, 15, 19, 23),
    "vgg16_bn": (1, 3, 5, 6, 8, 9),
    "wide_resnet_32_4": (2, 4, 6, 8, 10, 12),
    "mobilenet": (2, 4, 6, 8, 11),
}


@pytest.mark.parametrize("arch", SDN_BLOCKS)
def test_sdns_placement_is_that_of_its_code(arch):
    assert resolve_placement(ztw.build_backbone(arch), "sdn") == SDN_BLOCKS[arch]


def test_sdns_placement_elsewhere_is_by_the_cost():
    backbone = ztw.build_backbone("resnet20")
    assert resolve_placement(backbone, "sdn") == resolve_placement(
        backbone, [0.15, 0.3, 0.45, 0.6, 0.75, 0.9]
    )


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ("every 4", "placement 'every 4': resnet8 has only 3 blocks"),
        ("some", "placement 'some': must be all, every <n>, sdn, block indices or fractions of the cost"),
        ([], "placement []: must name at least one block"),
        ([0, 3], "placement 3: resnet8 has blocks 0..2"),
        ([-1], "placement -1: resnet8 has blocks 0..2"),
        ([0.5, 1.5], "placement 1.5: a fraction of the backbone's cost must lie in (0, 1]"),
        ([0.0], "placement 0.0: a fraction of the backbone's cost must lie in (0, 1]"),
        ([2, 1], "placement [2, 1]: gives blocks [2, 1] of resnet8, must be increasing"),
        ([0.98, 0.99], "placement [0.98, 0.99]: gives blocks [2, 2] of resnet8, must be increasing"),
    ],
)
def test_impossible_placements(placement, message):
    with pytest.raises(ztw.ZtwError) as caught:
        resolve_placement(ztw.build_backbone("resnet8"), placement)
    assert str(caught.value) == message
