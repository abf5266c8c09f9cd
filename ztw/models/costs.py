"""The cost of each exit of a network, in multiply-accumulate operations (MACs)."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from ztw.errors import ZtwError, unknown
from ztw.models.backbone import Backbone, seen, states_of
from ztw.models.network import EarlyExitNetwork
from ztw.models.operations import Counter, backbone_macs, module_macs, stage_costs
from ztw.models.published_counter import ensemble_operations, module_operations

COUNTERS: dict[str, Counter] = {"ztw": module_macs, "published": module_operations}


@overload
def macs(network: EarlyExitNetwork, counter: str = "ztw") -> Tensor: ...
@overload
def macs(network: Backbone, counter: str = "ztw") -> float: ...
def macs(network: EarlyExitNetwork | Backbone, counter: str = "ztw") -> Tensor | float:
    """Count the multiply-accumulate operations (MACs) of one sample up to each exit of a network.

    Args:
        network: an EarlyExitNetwork, counted with its ensemble, or a Backbone.
        counter: "ztw" = MACs. "published" = the released code's counter, for comparisons with published figures only:
            it overestimates grouped convolutions.

    Returns:
        Cumulative cost float64 (K,) for a network; one number for a backbone.

    Raises:
        ZtwError: for any other model, and for an unknown counter.

    Example:
        >>> import ztw
        >>> backbone = ztw.build_backbone("resnet8")
        >>> cost = ztw.macs(ztw.build_network(backbone, head="pool", progress=False))
        >>> bool(cost[0] < ztw.macs(backbone) < cost[-1])
        True
    """
    if counter not in COUNTERS:
        raise unknown("counter", counter, COUNTERS)
    if isinstance(network, Backbone):
        return backbone_macs(network, COUNTERS[counter])
    if not isinstance(network, EarlyExitNetwork):
        raise ZtwError(f"macs: {type(network).__name__}, must be an EarlyExitNetwork or a Backbone")
    combined = _combined_published(network) if counter == "published" else _combined(network)
    return _cumulative(network, COUNTERS[counter], combined)


def _combined(network: EarlyExitNetwork) -> list[float]:
    """Return the MACs (K,) of the ensemble and of the connection "boosted" at each exit."""
    ensemble = network.ensemble
    added = [0.0 if ensemble is None else ensemble.macs(exit) for exit in range(network.exits)]
    if network.connection.additive:  # one multiplication per class, at every exit but the first
        added = [value + network.backbone.num_classes * (exit > 0) for exit, value in enumerate(added)]
    return added


def _combined_published(network: EarlyExitNetwork) -> list[float]:
    """Return the ensemble's operations (K,) at each exit by the published counter."""
    ensemble, num_classes = network.ensemble, network.backbone.num_classes
    return [
        ensemble_operations(exit, num_classes) if ensemble is not None and ensemble.ensembled(exit) else 0.0
        for exit in range(network.exits)
    ]


def costly_exits(arch: str, cost: Tensor, base: float) -> str | None:
    """Return a line that names the exits that save nothing, or None if they are fewer than half of the ICs.

    Args:
        arch: name of the architecture, for the line.
        cost: (K,), cumulative MACs of the exits.
        base: MACs of the backbone alone.
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
        " backbone's MACs; use head='pool', a smaller width= or fewer exits"
    )


def fixed_exit_macs(network: EarlyExitNetwork, counter: str = "ztw") -> Tensor:
    """Count the operations of one sample in the network cut after each exit, for the rule "fixed_exit".

    Only this exit's head counts, and the heads before it if the exit needs their logits. The costs may fall from one
    exit to the next, if a head is more expensive than the following one.

    Args:
        network: a network without an ensemble.
        counter: see `macs`.

    Returns:
        float64 (K,).

    Raises:
        ZtwError: for a network with an ensemble, and for an unknown counter.
    """
    if counter not in COUNTERS:
        raise unknown("counter", counter, COUNTERS)
    network.check_fixed_exit()
    added = [0.0] * network.exits if counter == "published" else _combined(network)
    stages, heads = _parts(network, COUNTERS[counter], added)
    together = heads.cumsum(0)
    costs = [
        float(stages[list(network.backbone.needed(network.block_of(exit)))].sum())
        + float((together if network.needs_previous(exit) else heads)[exit])
        for exit in range(network.exits)
    ]
    return torch.tensor(costs, dtype=torch.float64)


def _cumulative(network: EarlyExitNetwork, count: Counter, added: list[float]) -> Tensor:
    """Return the cumulative cost (K,) of the exits; added: (K,), cost of combining each exit with previous ones."""
    stages, heads = _parts(network, count, added)
    if not network.heads:  # of a cascade of models, only the last one runs
        return stages[list(network.backbone.needed(len(stages) - 1))].sum() + heads
    return stages.cumsum(0)[[network.block_of(exit) for exit in range(network.exits)]] + heads.cumsum(0)


def _parts(network: EarlyExitNetwork, count: Counter, added: list[float]) -> tuple[Tensor, Tensor]:
    """Return the cost of each stage (B,), and of each exit's head or classifier (K,) with `added` (K,)."""
    backbone = network.backbone
    stages, states = stage_costs(backbone, count), states_of(backbone)
    costs = []
    for exit, (block, head) in enumerate(zip(network.placement, network.heads, strict=True)):
        previous = network.connection.cascade and exit
        more = [torch.zeros(1, backbone.num_classes)] if previous else []
        costs.append(count(head, seen(states[block + 1]), *more))
    costs.append(count(backbone.classifier, states[-1]))
    return stages, torch.tensor(costs, dtype=torch.float64) + torch.tensor(added, dtype=torch.float64)
