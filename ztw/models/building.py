"""Build an early-exit network: put internal classifiers on a backbone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ztw.errors import ZtwError, unknown
from ztw.models.backbone import Backbone
from ztw.models.costs import costly_exits, macs
from ztw.models.heads import HEADS, Head, HeadOptions, Transposed
from ztw.models.initialisation import initialise_head
from ztw.models.inputs import to_channels_last
from ztw.models.network import EarlyExitNetwork, connection_of
from ztw.models.placement import Placement, resolve_placement
from ztw.progress import Note, Report, reporter


def build_network(
    backbone: Backbone,
    connection: str = "independent",
    head: str = "conv",
    placement: Placement = "all",
    progress: bool | Report = True,
    **head_options: Any,
) -> EarlyExitNetwork:
    """Put untrained internal classifiers (ICs) on a backbone.

    Args:
        backbone: e.g. from `build_backbone` or `as_backbone`.
        connection: how the ICs are connected, one of `list_connections()`.
        head: kind of the ICs, one of `list_heads()`.
        placement: blocks to put ICs after: "all", "every 3", "sdn", block indices from 0, or shares of the backbone's
            cost in (0, 1]. See `ztw.models.placement.resolve_placement`.
        progress: receives a warning if at least half of the ICs save nothing. True = stderr, False = no output, or a
            function that takes a line.
        head_options: pooling, width, layer_norm, init; see `ztw.models.heads.HeadOptions`.

    Returns:
        The network, on the backbone's device.

    Raises:
        ZtwError: for an unknown connection, head or option, and for an invalid placement.

    Example:
        >>> import torch, ztw
        >>> backbone = ztw.build_backbone("resnet8")
        >>> network = ztw.build_network(backbone, connection="cascade_detached", head="pool")
        >>> network(torch.randn(4, 3, 32, 32)).shape  # 4 exits: one after each of 3 blocks, and the backbone's own
        torch.Size([4, 4, 10])
    """
    if not isinstance(backbone, Backbone):
        raise ZtwError(
            f"build_network: {type(backbone).__name__}, must be a Backbone; convert a model of yours with"
            " ztw.as_backbone(model, input_shape), or as_backbone(model, example=batch)"
        )
    report = reporter(progress)
    if head not in HEADS:
        raise unknown("head", head, HEADS)
    options = HeadOptions.of(head_options)
    blocks = resolve_placement(backbone, placement)
    num_classes = backbone.num_classes
    size = 0 if backbone.input_shape is None else backbone.input_shape[-1]
    cascade = connection_of(connection).cascade
    seen = [num_classes if cascade and exit else 0 for exit in range(len(blocks))]
    heads = []
    for block, previous in zip(blocks, seen, strict=True):
        shape = backbone.feature_shapes[block]
        signal = backbone.channels_first[block]
        ic = HEADS[head](shape[::-1] if signal else shape, num_classes, previous, size, options)
        if signal and isinstance(ic, Head):
            ic.body = Transposed(ic.body)
        heads.append(ic)
    if options.init == "released":
        for ic in heads:
            initialise_head(ic, backbone.arch)
    network = EarlyExitNetwork(backbone, heads, blocks, connection)
    network.anatomy = {"head": head, **asdict(options)}
    like = next(backbone.parameters(), torch.empty(0))
    network = to_channels_last(network.to(like.device))
    if report is not None:
        line = costly_exits(backbone.arch, macs(network), macs(backbone))
        if line is not None:
            report(Note(line))
    return network
