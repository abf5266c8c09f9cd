"""The placement of heads: the blocks after which they sit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

from ztw.catalogue.architectures import listed_placement, placement_step
from ztw.errors import ZtwError, is_number
from ztw.models.backbone import Backbone
from ztw.models.operations import backbone_macs, stage_costs

Placement = str | Sequence[int] | Sequence[float]
ALLOWED = "all, every <n>, sdn, block indices or fractions of the cost"


def resolve_placement(backbone: Backbone, placement: Placement) -> tuple[int, ...]:
    """Convert a placement to block indices.

    Args:
        backbone: the backbone.
        placement: one of

            - "all": after every block.
            - "every 3": after every third block.
            - whole numbers: block indices, from 0.
            - fractions in (0, 1]: after the block whose cumulative share of the backbone's MACs is nearest.
            - "sdn": as in SDN (Kaya et al. 2019), fractions 0.15, 0.3 ... 0.9. On "mobilenet", blocks 2, 4, 6, 8, 11.

    Returns:
        The block indices, increasing.

    Raises:
        ZtwError: for any other value, a block beyond the last, a fraction outside (0, 1], and two heads on one block.
    """
    if isinstance(placement, str):
        placement = listed_placement(placement, backbone.arch)
    if isinstance(placement, str):
        return _every_so_often(backbone, placement)
    if not hasattr(placement, "__len__") or not hasattr(placement, "__getitem__"):
        raise ZtwError(f"placement {placement!r}: must be {ALLOWED}")
    if not len(placement):
        raise ZtwError("placement []: must name at least one block")
    for item in placement:
        if not is_number(item):
            raise ZtwError(f"placement {item!r}: must be {ALLOWED}")
    if all(isinstance(item, Integral) for item in placement):
        chosen = _by_index(backbone, placement)
    else:
        chosen = _by_cost(backbone, placement)
    if any(later <= earlier for earlier, later in pairwise(chosen)):
        raise ZtwError(
            f"placement {list(placement)}: gives blocks {chosen} of {backbone.arch}, must be increasing"
        )
    return tuple(chosen)


def _every_so_often(backbone: Backbone, placement: str) -> tuple[int, ...]:
    step, blocks = placement_step(placement), len(backbone.stages)
    if step is None:
        raise ZtwError(f"placement {placement!r}: must be {ALLOWED}")
    if step > blocks:
        raise ZtwError(f"placement {placement!r}: {backbone.arch} has only {blocks} blocks")
    return tuple(range(step - 1, blocks, step))


def _by_index(backbone: Backbone, placement: Sequence[float]) -> list[int]:
    blocks = len(backbone.stages)
    for block in placement:
        if not 0 <= block < blocks:
            raise ZtwError(f"placement {block}: {backbone.arch} has blocks 0..{blocks - 1}")
    return [int(block) for block in placement]


def _by_cost(backbone: Backbone, placement: Sequence[float]) -> list[int]:
    done = stage_costs(backbone).cumsum(0) / backbone_macs(backbone)
    for item in placement:
        if not 0 < item <= 1:
            raise ZtwError(f"placement {item}: a fraction of the backbone's cost must lie in (0, 1]")
    return [int((done - item).abs().argmin()) for item in placement]
