"""Train the backbone and all exits together, on a weighted sum of the exits' losses (joint training)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ztw.batch import Batch, mapped
from ztw.catalogue.parts import EXIT_WEIGHTS
from ztw.data.dataset import Data
from ztw.errors import ZtwError, is_number, unknown
from ztw.models.network import EarlyExitNetwork
from ztw.models.operations import backbone_macs, stage_costs
from ztw.progress import Report
from ztw.training.compiling import compiled
from ztw.training.loop import History, Step, Task, run_epochs
from ztw.training.recipe import Recipe, make_optimizer
from ztw.training.resume import Checkpoints

# (share of the training completed at the end of the epoch, e / E in (0, 1]) -> weights of the exits' losses (K,)
Weights = Callable[[float], Tensor]


def exit_weights(
    network: EarlyExitNetwork, kind: str | Sequence[float], shares: Sequence[float] | None = None
) -> Weights:
    """Return the weights of the exits' losses in joint training.

    Args:
        network: the network of K exits.
        kind: K numbers, or one of these names.

            - "uniform": 1 for each exit (code of BranchyNet 2016).
            - "depth": j / (1 + ... + K) for exit j (PABEE 2020). The weights sum to 1, which shortens the steps of SGD;
              PABEE uses Adam, which ignores a common factor.
            - "growing": 1 for the backbone's exit, min(tau, 0.01 + tau e / E) for each IC in epoch e of E (code of SDN
              2019). tau is the IC's share of the backbone's cost.
        shares: tau of each IC, at least K - 1 numbers; None = the cost shares of their blocks.

    Returns:
        A function: share of the training completed -> weights float32 (K,).

    Raises:
        ZtwError: for an unknown name or a wrong number of weights.
    """
    exits = network.exits
    if not isinstance(kind, str):
        if not hasattr(kind, "__len__") or not all(map(is_number, kind)):
            raise ZtwError(f"exit_weights {kind!r}: must be {', '.join(EXIT_WEIGHTS)}, or {exits} numbers")
        if len(kind) != exits:
            raise ZtwError(f"exit_weights: {len(kind)} numbers, the network has {exits} exits")
        return lambda done: torch.tensor(kind, dtype=torch.float32)
    if kind not in EXIT_WEIGHTS:
        raise unknown("exit_weights", kind, EXIT_WEIGHTS)
    if kind == "uniform":
        return lambda done: torch.ones(exits)
    if kind == "depth":
        depth = torch.arange(1.0, exits + 1)
        return lambda done: depth / depth.sum()
    if shares is None:
        done = stage_costs(network.backbone).cumsum(0) / backbone_macs(network.backbone)
        shares = done[list(network.placement)].tolist()
    last = torch.tensor(shares[: exits - 1], dtype=torch.float32)
    return lambda done: torch.cat([torch.minimum(last, 0.01 + last * done), torch.ones(1)])


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x with its gradient multiplied by `factor`."""
    return x.detach() + factor * (x - x.detach())


def _scaled(state: Any, factor: float) -> Any:
    """Scale the gradient of every tensor of a stage's output that has one."""
    return mapped(state, lambda x: scale_gradient(x, factor) if x.requires_grad else x)


def rescaled_logits(network: EarlyExitNetwork, inputs: Batch) -> list[Tensor]:
    """Return the logits of all K exits (N, C); each of the K - k later exits sends 1 / (K - k) of the gradient.

    Of the n exits at or after a block, each sends 1 / n of its gradient to the block. So the gradient does not grow
    with the number of exits (gradient equilibrium, Li et al. 2019, used by BoostNet 2023).
    """
    hidden: Any = inputs
    features: list[Any] = []
    left = network.exits
    for block, stage in enumerate(network.backbone.stages):
        hidden = stage(hidden)
        features.append(_scaled(hidden, 1 / left) if block in network.placement else hidden)
        if block in network.placement:
            hidden = _scaled(hidden, (left - 1) / left)
            left -= 1
    return network.exit_logits(features, network.backbone.classifier(hidden).float())


@dataclass(frozen=True)
class JointLoss:
    """Parameters of the joint loss, the weighted sum of the exits' cross-entropies; weights: from `exit_weights`."""

    network: EarlyExitNetwork
    weights: Weights
    rescale_gradients: bool = False


def train_jointly(
    loss: JointLoss,
    data: Data,
    recipe: Recipe,
    seed: int,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Train backbone and ICs together in place, and set the network to eval mode.

    The history has the accuracy of the backbone's exit. Arguments as in `ztw.training.separate.train_backbone`.

    Raises:
        ZtwError: if the loss is not finite.
    """
    network = loss.network
    network.requires_grad_(True).train()
    optimizer = make_optimizer(network.parameters(), recipe)
    task = Task(
        [f"joint {network.connection.name}"], _joint_step(loss, recipe), network, optimizer, loss.weights
    )
    (history,) = run_epochs(task, data, recipe, seed, report, checkpoints)
    network.eval()
    return history


def _joint_step(loss: JointLoss, recipe: Recipe) -> Step:

    network = loss.network

    def all_logits(inputs: Batch) -> list[Tensor]:
        if loss.rescale_gradients:
            return rescaled_logits(network, inputs)
        return network.exit_logits(list(network.backbone.features(inputs)))

    forward = compiled(all_logits, recipe)

    def step(inputs: Batch, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        with recipe.compute.autocast():
            outputs = forward(inputs)
        losses = torch.stack([F.cross_entropy(output, labels) for output in outputs])
        return (weights * losses).sum()[None], (outputs[-1].argmax(-1) == labels).sum()[None]

    return step
