"""Where heads sit: every so often, by block, by cost."""

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
    done = (stage_costs(backbone).cumsum(0) / ztw.backbone_macs(backbone)).tolist()
    nearer = 0.6 * done[0] + 0.4 * done[1]
    assert resolve_placement(backbone, [nearer]) == (0,)
    assert resolve_placement(backbone, [nearer, 1.0]) == (0, 2)
    assert resolve_placement(backbone, [0.4 * done[0] + 0.6 * done[1]]) == (1,)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ("every 4", "placement 'every 4': resnet8 has only 3 blocks"),
        ("some", "placement 'some': must be all, every <n>, block indices or fractions of the cost"),
        ([], "placement []: must name at least one block"),
        ([0, 3], "placement 3: resnet8 has blocks 0..2"),
        ([-1], "placement -1: resnet8 has blocks 0..2"),
        ([0.5, 1.5], "placement 1.5: a fraction of the backbone's cost must lie in (0, 1]"),
        ([0.0], "placement 0.0: a fraction of the backbone's cost must lie in (0, 1]"),
        ([2, 1], "placement [2, 1]: means blocks [2, 1] of resnet8, must be increasing"),
        ([0.98, 0.99], "placement [0.98, 0.99]: means blocks [2, 2] of resnet8, must be increasing"),
    ],
)
def test_impossible_placements(placement, message):
    with pytest.raises(ztw.ZtwError) as caught:
        resolve_placement(ztw.build_backbone("resnet8"), placement)
    assert str(caught.value) == message
