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
from ztw.training.distillation import Distillation, distillation_loss
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
    return x.detach() + factor * (x - x.detach()) if factor else x.detach()


def _scaled(state: Any, factor: float) -> Any:
    """Scale the gradient of every tensor of a stage's output that has one."""
    return mapped(state, lambda x: scale_gradient(x, factor) if x.requires_grad else x)


# Number of exits at or after a block -> factors of the gradients that the block gets from its own exit and from the
# later stages
Shares = Callable[[int], tuple[float, float]]


def equal_shares(left: int) -> tuple[float, float]:
    """Give 1 / n of the gradient of each of the n exits at or after a block.

    So the gradient does not grow with the number of exits (gradient equilibrium, Li et al. 2019; BoostNet 2023).
    """
    return 1 / left, (left - 1) / left


def own_exit_only(left: int) -> tuple[float, float]:
    """Give the gradient of the next exit alone: no exit changes blocks before the previous exit (SWEET 2023)."""
    return 1.0, 0.0


def shared_logits(network: EarlyExitNetwork, inputs: Batch, shares: Shares) -> list[Tensor]:
    """Return the logits of all K exits (N, C), whose gradients reach the blocks in these shares."""
    hidden: Any = inputs
    features: list[Any] = []
    left = network.exits
    for block, stage in enumerate(network.backbone.stages):
        hidden = stage(hidden)
        here = block in network.placement
        own, later = shares(left) if here else (1.0, 1.0)
        features.append(_scaled(hidden, own) if here else hidden)
        hidden = _scaled(hidden, later) if here else hidden
        left -= here
    return network.exit_logits(features, network.backbone.classifier(hidden).float())


@dataclass(frozen=True)
class JointLoss:
    """Parameters of the joint loss, the weighted sum of the exits' losses.

    Args:
        weights: from `exit_weights`.
        shares: how the exits' gradients are divided; None = every block gets the whole gradient of every later exit.
        distillation: how each IC learns from the last exit; None = only from the labels.
    """

    network: EarlyExitNetwork
    weights: Weights
    shares: Shares | None = None
    distillation: Distillation | None = None


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


def exit_losses(outputs: Sequence[Tensor], labels: Tensor, how: Distillation | None) -> list[Tensor]:
    """Return the loss of each exit, given the logits (N, C) of all exits.

    With distillation, the last exit is the teacher of the others (Zhang et al. 2019, "Be Your Own Teacher", without
    the loss on features). The last exit learns from the labels.
    """
    *ics, last = outputs
    alone = F.cross_entropy(last, labels)
    if how is None:
        return [*(F.cross_entropy(output, labels) for output in ics), alone]
    return [*(distillation_loss(output, last, labels, how) for output in ics), alone]


def _joint_step(loss: JointLoss, recipe: Recipe) -> Step:

    network = loss.network

    def all_logits(inputs: Batch) -> list[Tensor]:
        if loss.shares is not None:
            return shared_logits(network, inputs, loss.shares)
        return network.exit_logits(list(network.backbone.features(inputs)))

    forward = compiled(all_logits, recipe)

    def step(inputs: Batch, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        with recipe.compute.autocast():
            outputs = forward(inputs)
        losses = torch.stack(exit_losses(outputs, labels, loss.distillation))
        return (weights * losses).sum()[None], (outputs[-1].argmax(-1) == labels).sum()[None]

    return step
