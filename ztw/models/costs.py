"""What a sample costs that leaves at each exit of a network, in multiply-accumulate operations (MACs)."""

from __future__ import annotations

import torch
from torch import Tensor

from ztw.models.network import EarlyExitNetwork
from ztw.models.operations import Counter, module_macs, stage_costs
from ztw.models.published_counter import ensemble_paper_ops, module_paper_ops


def macs(network: EarlyExitNetwork) -> Tensor:
    """Cumulative MACs (K,) float64 of a sample that leaves at each exit.

    network: its cascade and, when it has one, its ensemble are included; images are of the size it is built for.
    """
    ensemble = network.ensemble
    added = [0.0 if ensemble is None else ensemble.macs(exit) for exit in range(network.exits)]
    if network.connection.additive:  # one multiplication a class, at every exit that has a predecessor
        added = [value + network.backbone.num_classes * (exit > 0) for exit, value in enumerate(added)]
    return _cumulative(network, module_macs, added)


def paper_ops(network: EarlyExitNetwork) -> Tensor:
    """The same by the published operation counter, trap included: to compare with published figures only."""
    ensemble, num_classes = network.ensemble, network.backbone.num_classes
    added = [
        ensemble_paper_ops(exit, num_classes) if ensemble is not None and ensemble.ensembled(exit) else 0.0
        for exit in range(network.exits)
    ]
    return _cumulative(network, module_paper_ops, added)


def costly_exits(arch: str, cost: Tensor, base: float) -> str | None:
    """Say in a line which exits save nothing, where that is at least half of the ICs; else None.

    A sample that leaves at an exit has paid for all exits before it, too.

    Args:
        arch: what the line calls the network.
        cost: (K,) cumulative MACs of its exits.
        base: MACs of its backbone alone.
    """
    relative = (cost / base).tolist()[:-1]
    useless = [exit + 1 for exit, cost in enumerate(relative) if round(cost, 2) >= 1]
    if not useless or 2 * len(useless) < len(relative):
        return None
    first, last = useless[0], useless[-1]
    where, costs = f"exit {first}", f"{relative[first - 1]:.2f}"
    if last > first:
        where, costs = f"exits {first} to {last}", f"{costs} to {relative[last - 1]:.2f}"
    return (
        f"{arch}: a sample that leaves at {where} saves nothing, because it costs {costs} of the"
        " backbone's MACs; head='pool', a smaller width= or fewer exits cost less"
    )


def _cumulative(network: EarlyExitNetwork, count: Counter, added: list[float]) -> Tensor:
    """Cost (K,) of everything up to each exit; added: (K,), what combining exits costs at each."""
    backbone = network.backbone
    stages = stage_costs(backbone, count).cumsum(0)
    exits_so_far, costs = 0.0, []
    for exit, (block, head) in enumerate(zip(network.placement, network.heads, strict=True)):
        shapes = [backbone.feature_shapes[block]]
        if network.connection.cascade and exit:
            shapes.append((backbone.num_classes,))
        exits_so_far += count(head, *shapes) + added[exit]
        costs.append(float(stages[block]) + exits_so_far)
    exits_so_far += count(backbone.classifier, backbone.feature_shapes[-1]) + added[-1]
    costs.append(float(stages[-1]) + exits_so_far)
    return torch.tensor(costs, dtype=torch.float64)
