"""Choose the thresholds of a network on a user's held-out samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ztw.batch import split
from ztw.data.user_data import LoaderData, as_data
from ztw.data.wanted import Wanted, wanted_by
from ztw.device import Compute
from ztw.errors import ZtwError, is_number
from ztw.evaluation import predictions
from ztw.evaluation.exit_times import SAMPLES, exit_times
from ztw.evaluation.metrics import at_budget
from ztw.exits.fitted_base import unfitted
from ztw.exits.logits import check_logits
from ztw.exits.rules import ExitRule, exit_rule, fit_rule, rule_name
from ztw.exits.sweep import Curve, scored, sweep
from ztw.exits.thresholds import Candidates, RiskControlled, at, candidates, refuse_fitted
from ztw.models.costs import fixed_exit_macs, macs
from ztw.models.inputs import modes_kept
from ztw.models.network import EarlyExitNetwork
from ztw.onnx.runner import CHUNK, OnnxRunner
from ztw.progress import Report, reporter
from ztw.tensors import as_tensor


def predict(
    network: EarlyExitNetwork,
    data: Any,
    *,
    batch_size: int = 256,
    precision: str = "fp32",
    progress: bool | Report = True,
) -> tuple[Tensor, Tensor]:
    """Compute the logits of all exits for a data set, without early exits and without the ensemble.

    Args:
        network: the network. It runs in eval mode; its mode is restored afterwards.
        data: inputs and labels in any form of `train_exits`, e.g. (images, labels), or for texts
            `{"input_ids": ids, "attention_mask": mask, "labels": labels}`.
        batch_size: samples per batch. A DataLoader keeps its own.
        precision: see `train_exits`.
        progress: see `train_exits`.

    Returns:
        Logits float32 (K, N, C) of single exits, and labels int64 (N,), both on the CPU.

    Raises:
        ZtwError: for invalid arguments, inputs or labels that do not fit the network, and logits that are not finite.

    Example:
        >>> import torch, ztw
        >>> network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False)
        >>> images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
        >>> logits, labels = ztw.predict(network, (images, labels), progress=False)
        >>> logits.shape
        torch.Size([4, 64, 10])
    """
    _check_network(network, "predict")
    report = reporter(progress)
    samples = as_data(data, wanted_by(network), "predict")
    if isinstance(samples, LoaderData):
        batch_size = samples.batch_size
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ZtwError(f"batch_size {batch_size!r}: must be a whole number of at least 1")
    with modes_kept(network):
        compute = Compute.on(samples.device, precision)
        (logits,), labels = predictions.predict_networks(
            [network], samples, batch_size, compute, report=report
        )
    if not logits.isfinite().all():
        raise ZtwError(
            "predict: some of the network's logits are not finite; train it again, with a lower lr"
        )
    return logits.clone(), labels.clone()  # autograd refuses tensors made in inference mode


@dataclass(frozen=True)
class OperatingPoint:
    """An exit rule with its accuracy and cost on held-out samples, from `choose_threshold`.

    Attributes:
        rule: the rule with its threshold.
        accuracy: in [0, 1].
        cost: mean cost of a sample, in multiply-accumulate operations (MACs).
        relative_cost: the cost as a share of the backbone's; NaN if the backbone has no MACs.
        exit_fraction: (K,), share of samples that leave at each exit.
        chosen_by: the goal, the thresholds and the number of samples, in words.
        ms: with `budget_ms`, the mean time of a sample, in milliseconds; else None.
        exit_ms: with `budget_ms`, (K,), the measured time of a sample that leaves at each exit, in milliseconds; else
            None.
    """

    rule: ExitRule
    accuracy: float
    cost: float
    relative_cost: float
    exit_fraction: tuple[float, ...]
    chosen_by: str
    ms: float | None = None
    exit_ms: tuple[float, ...] | None = None


def choose_threshold(
    network: EarlyExitNetwork | OnnxRunner,
    held_out: Any,
    *,
    budget: float | str | None = None,
    budget_ms: float | None = None,
    allowed_loss: float | None = None,
    risk: tuple[float, float] | None = None,
    rule: str | type[ExitRule] = "max_softmax",
    thresholds: str | None = None,
    points: int = 1000,
    batch_size: int = 256,
    precision: str = "fp32",
    progress: bool | Report = True,
) -> OperatingPoint:
    """Choose the thresholds for one goal on held-out samples: a budget, a time, an allowed loss or a risk.

    Args:
        network: an EarlyExitNetwork, used with its ensemble if it has one, or an OnnxRunner.
        held_out: inputs and labels that were not used for training, in any form of `train_exits`, e.g. (images, labels)
            or `({"input_ids": ids, "attention_mask": mask}, labels)`. For an EarlyExitNetwork also the result of
            `predict`.
        budget: the largest mean cost, as a share of the backbone's; the most expensive thresholds within it are chosen.
            "max" = the thresholds with the highest accuracy.
        budget_ms: the largest mean time of a sample on this machine, in milliseconds; the slowest thresholds within it
            are chosen. First, the time of each exit is measured, one sample at a time, in PyTorch or with the
            OnnxRunner: the median of 10 repetitions, for the first 4 held-out samples. With the result of `predict`,
            samples of the backbone's example are timed instead.
        allowed_loss: the largest loss of accuracy against running every sample to the end, in [0, 1). The cheapest
            thresholds within it are chosen; if there are none, the most accurate.
        risk: (eps, delta). A sample is lost if it leaves early with a wrong prediction, but would be right at the last
            exit. With probability 1 - delta over the draw of held-out samples, the share of lost samples is at most
            eps.
        rule: name of the exit rule, or its class. With "fixed_exit", the exit is chosen at which to cut the network. A
            rule such as "pcee" is first fitted on the same held-out samples, except for an OnnxRunner whose file has
            the rule: the file's parameters are used. A class from `fit_rule` keeps its parameters.
        thresholds: the way to choose thresholds, one of `list_thresholds()`. None = "risk_controlled" for a risk, else
            "shared". The way "allowed_loss" (Berestizshevsky & Even 2019) takes the argument `allowed_loss` as the
            allowed loss of each exit.
        points: resolution of the grid of thresholds, which has about 2 * `points` values.
        batch_size: see `predict`.
        precision: see `predict`.
        progress: see `predict`.

    Returns:
        The operating point: the rule with its thresholds, accuracy and cost.

    Raises:
        ZtwError: unless exactly one goal is given; if no thresholds meet the budget; for invalid arguments, inputs or
            labels; and for a risk if the held-out samples lack a class.

    Example:
        >>> import torch, ztw
        >>> network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False)
        >>> images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
        >>> point = ztw.choose_threshold(network, (images, labels), budget=0.5, progress=False)
        >>> point.relative_cost <= 0.5
        True
        >>> result = network.eval().infer(images, point.rule)
    """
    if not isinstance(network, OnnxRunner):
        _check_network(network, "choose_threshold")
    wishes = {"budget": budget, "budget_ms": budget_ms, "allowed_loss": allowed_loss, "risk": risk}
    given = [name for name, value in wishes.items() if value is not None]
    if len(given) != 1:
        raise ZtwError(
            "choose_threshold: give one of budget, budget_ms, allowed_loss and risk, not"
            f" {' and '.join(given) or 'none'}"
        )
    wanted = "risk_controlled" if risk is not None else "shared"
    thresholds = thresholds or wanted
    if risk is not None and thresholds != wanted:
        raise ZtwError(f"thresholds {thresholds!r}: with risk, must be 'risk_controlled' or left out")
    kind = exit_rule(rule)
    rule = rule_name(kind)
    if risk is not None:
        refuse_fitted(kind)
    _check_wish(budget, budget_ms, allowed_loss, risk)
    if isinstance(network, OnnxRunner):
        if kind.single:
            raise ZtwError(f"rule {rule}: give the network, because an exported one cannot be cut")
        outputs, labels = predict_onnx(network, held_out)
        operations, base = network.cost, network.backbone_cost
        if network.rule is not None and unfitted(type(network.rule)) is kind:
            kind = type(network.rule)  # the file computes the scores with its own parameters
    else:
        logits, labels = _predicted(network, held_out, batch_size, precision, progress)
        operations = fixed_exit_macs(network) if kind.single else macs(network)
        base = macs(network.backbone)
        outputs = logits if network.ensemble is None else network.ensemble(logits)
    kind = fit_rule(outputs, labels, kind)
    cost = operations if budget_ms is None else _measured(network, held_out, kind)
    if risk is not None:
        eps, delta = risk
        way = RiskControlled(delta=delta, lowest=eps, highest=eps, steps=1)
        offered = way.candidates(outputs, labels, cost, kind, points)
    else:
        offered = candidates(thresholds, outputs, labels, cost, kind, points)
    curve = sweep(outputs, labels, cost, kind, offered.thresholds)
    point = f"the cheapest operating point with rule {rule} and {thresholds} thresholds"
    if budget is not None:
        (index,) = at_budget(curve, [budget], base)
        if index is None:
            cheapest = float(curve.cost.min()) / base
            raise ZtwError(
                f"budget {budget}: {point} costs {cheapest:.4g} of the backbone; use a larger budget, cheaper heads or"
                " fewer exits"
            )
    elif budget_ms is not None:
        slowest = float(cost.max())
        (index,) = at_budget(curve, [min(budget_ms / slowest, 1.0)], slowest)
        if index is None:
            raise ZtwError(
                f"budget_ms {budget_ms}: {point} takes {float(curve.cost.min()):.4g} ms on this machine; use a larger"
                " budget_ms, cheaper heads or fewer exits"
            )
    elif allowed_loss is not None:
        full = float(scored(outputs, labels, kind)[1][-1].double().mean())
        index = _allowed(
            curve, offered, full - allowed_loss, allowed_loss if thresholds == "allowed_loss" else None
        )
    else:
        index = 0
    wish = f"{given[0]} {wishes[given[0]]}"
    mean = float(curve.exit_fraction[index] @ operations)
    return OperatingPoint(
        rule=at(kind, offered, index),
        accuracy=float(curve.accuracy[index]),
        cost=mean,
        relative_cost=mean / base if base else math.nan,
        exit_fraction=tuple(curve.exit_fraction[index].tolist()),
        chosen_by=f"{wish}, {thresholds} thresholds of {rule}, on {labels.numel()} held-out samples",
        ms=None if budget_ms is None else float(curve.cost[index]),
        exit_ms=None if budget_ms is None else tuple(cost.tolist()),
    )


def _measured(network: EarlyExitNetwork | OnnxRunner, held_out: Any, rule: type[ExitRule]) -> Tensor:
    """Measure the time (K,) of each exit, in milliseconds, on the first held-out samples or on the example."""
    if isinstance(network, OnnxRunner):
        wanted = _wanted_by_runner(network)
        return exit_times(network, rule, _first_inputs(held_out, wanted))
    wanted = wanted_by(network)
    known = _are_predictions(held_out, network)
    inputs = wanted.inputs.sample(SAMPLES) if known else _first_inputs(held_out, wanted)
    with modes_kept(network):
        return exit_times(network.eval(), rule, inputs)


def _first_inputs(data: Any, wanted: Wanted) -> Any:
    inputs, _ = next(iter(as_data(data, wanted, "choose_threshold").batches(SAMPLES)))
    return next(split(inputs, SAMPLES))


def _wanted_by_runner(runner: OnnxRunner) -> Wanted:
    return Wanted(runner.form.inputs, runner.form.num_classes, torch.device("cpu"))


def predict_onnx(runner: OnnxRunner, data: Any) -> tuple[Tensor, Tensor]:
    """Compute the logits (K, N, C) of every exit in ONNX Runtime, with the ensemble, and labels (N,)."""
    batches = as_data(data, _wanted_by_runner(runner), "predict").batches(CHUNK)
    logits, labels = zip(*((runner.logits(inputs), labels) for inputs, labels in batches), strict=True)
    return torch.cat(logits, dim=1), torch.cat(labels)


def _check_network(network: Any, name: str) -> None:
    if not isinstance(network, EarlyExitNetwork):
        raise ZtwError(
            f"{name}: {type(network).__name__}, must be an EarlyExitNetwork; build_network makes one"
        )


def _check_wish(budget: Any, budget_ms: Any, allowed_loss: Any, risk: Any) -> None:
    if budget not in (None, "max") and not (is_number(budget) and budget > 0):
        raise ZtwError(f"budget {budget!r}: must be a fraction of the backbone's cost above 0, or 'max'")
    if budget_ms is not None and not (is_number(budget_ms) and budget_ms > 0):
        raise ZtwError(f"budget_ms {budget_ms!r}: must be a number of milliseconds above 0")
    if allowed_loss is not None and not (is_number(allowed_loss) and 0 <= allowed_loss < 1):
        raise ZtwError(f"allowed_loss {allowed_loss!r}: must be a share of the samples in [0, 1)")
    if risk is not None:
        pair = isinstance(risk, tuple | list) and len(risk) == 2
        if not pair or not all(is_number(value) and 0 < value < 1 for value in risk):
            raise ZtwError(f"risk {risk!r}: must be (eps, delta), both in (0, 1)")


def _predicted(
    network: EarlyExitNetwork, held_out: Any, batch_size: int, precision: str, progress: bool | Report
) -> tuple[Tensor, Tensor]:
    """Return given predictions, checked, or compute those of inputs."""
    if _are_predictions(held_out, network):
        logits, labels = held_out
        logits, labels, _ = check_logits(logits, labels)
        if (logits.shape[0], logits.shape[2]) != (network.exits, network.backbone.num_classes):
            raise ZtwError(
                f"logits: shape {tuple(logits.shape)}, the network has {network.exits} exits and"
                f" {network.backbone.num_classes} classes"
            )
        return logits.detach().cpu(), labels.cpu()
    return predict(network, held_out, batch_size=batch_size, precision=precision, progress=progress)


def _are_predictions(given: Any, network: EarlyExitNetwork) -> bool:
    """Return whether data are logits (K, N, C) and labels (N,), and not inputs (N, T, D) and labels."""
    if not isinstance(given, tuple | list) or len(given) != 2 or getattr(given[0], "ndim", 0) != 3:
        return False
    (first, *others) = wanted_by(network).inputs.inputs
    return bool(others) or len(first.shape) != 2 or as_tensor(given[1], "labels").numel() != len(given[0])


def _allowed(curve: Curve, offered: Candidates, wanted: float, parameter: float | None) -> int:
    """Return the cheapest row of accuracy `wanted`, or the first row up to `parameter`."""
    if parameter is not None:
        return int((offered.parameter <= parameter).nonzero()[0])
    enough = (curve.accuracy >= wanted - 1e-12).nonzero().flatten()
    if not len(enough):  # possible with per-exit thresholds: none may be as accurate as the last exit
        enough = (curve.accuracy == curve.accuracy.max()).nonzero().flatten()
    return int(enough[curve.cost[enough].argmin()])
