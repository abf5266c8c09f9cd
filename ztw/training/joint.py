"""Joint training: the backbone and all its exits together, on a weighted sum of the exits' losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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

# share of the training that is done when the epoch at work ends, e / E in (0, 1] -> weight of every exit's loss (K,)
Weights = Callable[[float], Tensor]


def exit_weights(
    network: EarlyExitNetwork, kind: str | Sequence[float], shares: Sequence[float] | None = None
) -> Weights:
    """The weights of the exits' losses in joint training.

    kind: "uniform" = 1 each (BranchyNet 2016's code); "depth" = j / sum of j, deeper exits weigh more
    (PABEE 2020, whose authors train with Adam, which no common factor of the weights changes; under SGD the last
    of K exits has the weight 2 / (K + 1)); "growing" = 1 for the backbone's own exit, and for each IC
    min(tau, 0.01 + tau e / E) in epoch e of E, as in SDN's code (2019), tau its share of the backbone's cost: its
    block's, or the one in `shares` (K - 1 or more), where it was asked for; or K numbers. Raises ZtwError for an
    unknown name or another count of numbers.
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
    """x itself, its gradient multiplied by `factor`."""
    return x.detach() + factor * (x - x.detach())


def rescaled_logits(network: EarlyExitNetwork, images: Tensor) -> list[Tensor]:
    """Logits of all K exits (N, C); of the K - k exits still to come, each sends 1 / (K - k) of the gradient.

    The gradient that reaches a block then does not grow with the number of exits behind it (gradient
    equilibrium, Li et al. 2019, as BoostNet 2023 uses it).
    """
    hidden, features = images, []
    left = network.exits
    for block, stage in enumerate(network.backbone.stages):
        hidden = stage(hidden)
        features.append(scale_gradient(hidden, 1 / left) if block in network.placement else hidden)
        if block in network.placement:
            hidden = scale_gradient(hidden, (left - 1) / left)
            left -= 1
    return network.exit_logits(features, network.backbone.classifier(hidden).float())


@dataclass(frozen=True)
class JointLoss:
    """What joint training minimises: the weighted sum of the cross-entropies of a network's exits.

    weights: of `exit_weights`; rescale_gradients: see `rescaled_logits`.
    """

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
    """Train backbone and ICs of the loss's network together in place; ends in eval mode.

    data: the training part, on the network's device; seed: of the order and the augmentation; checkpoints:
    where an interrupted training goes on from. The history's accuracy is that of the backbone's own exit.
    Raises ZtwError when the loss is not finite.
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
    """The weighted sum as one loss."""
    network = loss.network

    def all_logits(images: Tensor) -> list[Tensor]:
        if loss.rescale_gradients:
            return rescaled_logits(network, images)
        return network.exit_logits(list(network.backbone.features(images)))

    forward = compiled(all_logits, recipe)

    def step(images: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        with recipe.compute.autocast():
            outputs = forward(images)
        losses = torch.stack([F.cross_entropy(output, labels) for output in outputs])
        return (weights * losses).sum()[None], (outputs[-1].argmax(-1) == labels).sum()[None]

    return step
