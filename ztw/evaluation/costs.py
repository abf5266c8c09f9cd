"""What a sample costs that leaves at each exit of a network, in multiply-accumulate operations (MACs)."""

from __future__ import annotations

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.models.network import EarlyExitNetwork
from ztw.models.operations import (
    Counter,
    module_macs,
    stage_costs,
)
from ztw.models.published_counter import ensemble_paper_ops, module_paper_ops


def macs(network: EarlyExitNetwork, input_size: tuple[int, int, int] | None = None) -> Tensor:
    """Cumulative MACs (K,) float64 of a sample that leaves at each exit.

    network: its cascade and, when it has one, its ensemble are included; input_size: (C, H, W), by
    default the backbone's; another one is refused with ZtwError because heads are built for one.
    """
    ensemble = network.ensemble
    added = [0.0 if ensemble is None else ensemble.macs(exit) for exit in range(network.exits)]
    if network.mode.additive:  # one multiplication a class, at every exit that has a predecessor
        added = [value + network.backbone.classes * (exit > 0) for exit, value in enumerate(added)]
    return _cumulative(network, module_macs, added, input_size)


def paper_ops(network: EarlyExitNetwork, input_size: tuple[int, int, int] | None = None) -> Tensor:
    """The same by the published operation counter, trap included: to compare with published figures only."""
    ensemble, classes = network.ensemble, network.backbone.classes
    added = [
        ensemble_paper_ops(exit, classes) if ensemble is not None and ensemble.ensembled(exit) else 0.0
        for exit in range(network.exits)
    ]
    return _cumulative(network, module_paper_ops, added, input_size)


def _cumulative(
    network: EarlyExitNetwork, count: Counter, added: list[float], input_size: tuple[int, int, int] | None
) -> Tensor:
    """Cost (K,) of everything up to each exit; added: what its ensemble costs."""
    backbone = network.backbone
    if input_size is not None and tuple(input_size) != backbone.input_shape:
        raise ZtwError(f"input size {tuple(input_size)}: this network is built for {backbone.input_shape}")
    stages = stage_costs(backbone, count).cumsum(0)
    spent, costs = 0.0, []
    for exit, (block, head) in enumerate(zip(network.placement, network.heads, strict=True)):
        shapes = [backbone.feature_shapes[block]]
        if network.mode.cascade and exit:
            shapes.append((backbone.classes,))
        spent += count(head, *shapes) + added[exit]
        costs.append(float(stages[block]) + spent)
    spent += count(backbone.classifier, backbone.feature_shapes[-1]) + added[-1]
    costs.append(float(stages[-1]) + spent)
    return torch.tensor(costs, dtype=torch.float64)
