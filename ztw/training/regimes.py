"""Train the exits of one network on a user's data."""

from __future__ import annotations

import hashlib
import json
import math
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from ztw.data.dataset import Data
from ztw.data.user_data import LoaderData, TensorData, as_data
from ztw.data.wanted import wanted_by
from ztw.device import Compute
from ztw.errors import ZtwError, is_number, unknown
from ztw.models.checkpoints import versions
from ztw.models.network import EarlyExitNetwork
from ztw.progress import Note, Report, reporter
from ztw.training.distillation import Distillation
from ztw.training.joint import JointLoss, exit_weights, own_exit_only, train_jointly
from ztw.training.layer_wise import train_layer_wise
from ztw.training.loop import History
from ztw.training.recipe import OPTIMIZERS, Recipe
from ztw.training.resume import Checkpoints
from ztw.training.separate import train_separately

REGIMES = ("separate", "joint", "layer_wise")


def train_exits(
    network: EarlyExitNetwork,
    data: Any,
    epochs: float = 5,
    *,
    regime: str = "separate",
    lr: float = 1e-3,
    batch_size: int = 128,
    optimizer: str = "adam",
    weight_decay: float = 5e-4,
    milestones: tuple[float, ...] = (),
    weights: Any = "uniform",
    distillation: tuple[float, float] | None = None,
    stop_gradient: bool = False,
    seed: int = 0,
    precision: str = "fp32",
    checkpoints: Path | str | None = None,
    progress: bool | Report = True,
) -> History:
    """Train the internal classifiers (ICs) of a network in place, and optionally its backbone.

    The default optimizer, lr and batch size are ZTW's for ICs (2021). ZTW trains 50 epochs, divides lr by 10 after
    epoch 15, and uses a weight decay of 1e-4 for ResNet and MobileNet.

    Args:
        network: from `build_network`. It is trained on its device, and is in eval mode afterwards.
        data: training samples in one of these forms, with labels int (N,). NumPy arrays stand for tensors.

            - (inputs, labels). The inputs are what the network takes: normalised images float (N, C, H, W), another
              tensor, or a tuple or dict of tensors, e.g. `{"input_ids": ids, "attention_mask": mask}` for texts.
            - A dict of the inputs and "labels", as Hugging Face's tokenizers and collators make it.
            - A Dataset of (inputs, label), or of dicts with "label".
            - A DataLoader of such batches. It keeps its batch size, order and augmentation. The length of texts may
              differ between batches.
        epochs: passes over the data; 0.5 is half a pass.
        regime: "separate" = only the ICs, with a frozen backbone. "joint" = backbone and ICs together. "layer_wise" =
            one exit after the other, with the stages since the previous exit. The epochs are divided among the exits.
        lr: initial learning rate.
        batch_size: samples per step.
        optimizer: "adam" or "sgd".
        weight_decay: L2 penalty of the optimizer.
        milestones: epochs after which lr is divided by 10.
        weights: weights of the exits' losses in joint training: "uniform", "depth", "growing" or one number per exit.
            See `ztw.training.joint.exit_weights`.
        distillation: for joint training, (weight, temperature): every IC also learns from the predictions of the last
            exit, with this share of its loss (Zhang et al. 2019). None = it learns from the labels only.
        stop_gradient: for joint training: the loss of an exit trains its head and the stages since the previous exit
            only (SWEET 2023).
        seed: seed of the order, augmentation and dropout.
        precision: "fp32", "bf16", or "auto" = bf16 where it is faster.
        checkpoints: folder for checkpoints. The same call then resumes a stopped training, even in the middle of an
            epoch, and ends with the same weights. The weights can differ for a Dataset or DataLoader with a random
            state of its own.
        progress: receives lines about the progress. True = stderr, False = no output, or a function that takes a line.

    Returns:
        The history, a list with one dict per epoch: epoch, loss, accuracy of the last trained exit, lr, seconds, and
        finished (Unix time).

    Raises:
        ZtwError: for invalid arguments, inputs or labels, and for a loss that is not finite.

    Example:
        >>> import torch, ztw
        >>> network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False)
        >>> images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
        >>> history = ztw.train_exits(network, (images, labels), epochs=2, progress=False)
        >>> len(history)
        2
    """
    if not isinstance(network, EarlyExitNetwork):
        raise ZtwError(
            f"train_exits: {type(network).__name__}, must be an EarlyExitNetwork; build_network makes one"
        )
    report = reporter(progress)
    if regime not in REGIMES:
        raise unknown("regime", regime, REGIMES)
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    _check_numbers(epochs, lr, batch_size, weight_decay, milestones, seed)
    taught = _distillation(distillation)
    if regime != "joint" and (taught is not None or stop_gradient):
        raise ZtwError(f"train_exits: distillation and stop_gradient need regime='joint', not {regime!r}")
    if checkpoints is not None and not isinstance(checkpoints, str | Path):
        raise ZtwError(f"checkpoints {checkpoints!r}: must be the path of a folder")
    if regime == "separate" and network.connection.additive:
        raise ZtwError(
            f"regime 'separate': cannot be used with connection={network.connection.name!r}, which also trains the"
            " backbone's exit; use joint or layer_wise"
        )
    if any(weight.is_inference() for weight in network.parameters()):
        raise ZtwError(
            "train_exits: the network was made in torch.inference_mode(); make it outside of inference mode"
        )
    if not network.heads:
        raise ZtwError("train_exits: the network has no ICs")
    if regime == "separate" and not any(True for head in network.heads for _ in head.parameters()):
        raise ZtwError(
            "regime 'separate': the network's ICs have no weights to train; use joint or layer_wise"
        )
    samples = as_data(data, wanted_by(network), "train_exits")
    if isinstance(samples, LoaderData):
        batch_size = samples.batch_size
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        milestones=tuple(milestones),
        compute=Compute.on(samples.device, precision),
        optimizer=optimizer,
    )
    kept = None
    if checkpoints is not None:
        of = _identity(network, samples, (recipe, regime, weights, taught, stop_gradient, seed))
        kept = Checkpoints(Path(checkpoints), of, report or (lambda line: None))
        if isinstance(samples, LoaderData) and (states := samples.own_states()):
            kept.report(Note(f"checkpoints: this DataLoader may not resume bit for bit: {'; '.join(states)}"))
    gpus = [samples.device] if samples.device.type == "cuda" else []
    # The caller may have switched gradients off
    with torch.random.fork_rng(gpus), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        if regime == "separate":
            return train_separately([network], samples, recipe, seed, report, kept)[0]
        if regime == "joint":
            shares = own_exit_only if stop_gradient else None
            loss = JointLoss(network, exit_weights(network, weights), shares, taught)
            return train_jointly(loss, samples, recipe, seed, report, kept)
        return train_layer_wise(network, samples, recipe, seed, report, kept)


def _distillation(given: Any) -> Distillation | None:
    if given is None:
        return None
    pair = tuple(given) if isinstance(given, tuple | list) else ()
    if len(pair) != 2 or not all(map(is_number, pair)) or not 0 < pair[0] <= 1 or not 0 < pair[1] < math.inf:
        raise ZtwError(
            f"distillation {given!r}: must be (weight, temperature), a weight in (0, 1] and a temperature above 0"
        )
    return Distillation(*pair)


def _check_numbers(
    epochs: Any, lr: Any, batch_size: Any, weight_decay: Any, milestones: Any, seed: Any
) -> None:
    for name, value in (("epochs", epochs), ("lr", lr)):
        if not is_number(value) or not 0 < value < math.inf:
            raise ZtwError(f"{name} {value!r}: must be a number above 0")
    if not isinstance(batch_size, int) or batch_size < 2:
        raise ZtwError(f"batch_size {batch_size!r}: must be a whole number of at least 2")
    if not is_number(weight_decay) or not 0 <= weight_decay < math.inf:
        raise ZtwError(f"weight_decay {weight_decay!r}: must be a number of at least 0")
    if not isinstance(milestones, tuple | list) or not all(map(is_number, milestones)):
        raise ZtwError(f"milestones {milestones!r}: must be numbers of epochs, as (15, 25)")
    if not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**63:
        raise ZtwError(f"seed {seed!r}: must be a whole number of at most 64 bits")


def _identity(network: EarlyExitNetwork, data: Data, settings: tuple[Any, ...]) -> dict[str, str]:
    """Return digests of all that a checkpoint and the training that resumes from it must have in common."""
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    anatomy = {"connection": network.connection.name, "placement": list(network.placement), "shapes": shapes}
    known = {
        "samples": str(len(data)),
        "labels": _digest(data.labels) if isinstance(data, TensorData) else "",
    }
    found = {"network": _digest_of(anatomy), "settings": repr(settings), "data": _digest_of(known)}
    if settings[1] == "separate":
        found["backbone"] = _digest_of(
            {name: _digest(x) for name, x in network.backbone.state_dict().items()}
        )
    return {**found, "software": json.dumps(versions(), sort_keys=True)}


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _digest_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
