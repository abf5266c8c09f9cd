"""What logits must be, their log-probabilities, and reading them from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.tensors import as_tensor, read_tensors

# A probability below this is 0 in float32; flooring it keeps log-probabilities finite.
LOG_FLOOR = float(torch.tensor(torch.finfo(torch.float32).tiny).log())


class Checked(NamedTuple):
    """Tensors that `check_logits` has checked; what was not given is empty."""

    logits: Tensor
    labels: Tensor
    cost: Tensor


def check_logits(logits: Any, labels: Any = None, cost: Any = None) -> Checked:
    """Check logits (K, N, C), labels (N,) and cost (K,), and take them as tensors.

    Args:
        logits: finite numbers; no rule can compare others.
        labels: integers in 0..C-1; see `class_labels`.
        cost: positive, strictly increasing.

    Returns:
        The logits, the labels in int64, and the cost in float64 on the CPU.

    Raises:
        ZtwError: naming what is wrong.
    """
    logits = as_tensor(logits, "logits")
    found = Checked(logits, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
    if logits.dim() != 3 or 0 in logits.shape:
        raise ZtwError(f"logits: shape {tuple(logits.shape)}, must be (exits, samples, classes), none 0")
    if not logits.is_floating_point():
        raise ZtwError(f"logits: {logits.dtype}, must be floating-point numbers")
    _check_finite(logits)
    if labels is not None:
        labels = as_tensor(labels, "labels")
        if labels.shape != logits.shape[1:2]:
            raise ZtwError(f"labels: shape {tuple(labels.shape)}, must be ({logits.shape[1]},)")
        labels = class_labels(labels)
        if labels.min() < 0 or labels.max() >= logits.shape[2]:
            raise ZtwError(
                f"labels: must lie in 0..{logits.shape[2] - 1}, got {int(labels.min())}..{int(labels.max())}"
            )
        found = found._replace(labels=labels)
    if cost is not None:
        cost = as_tensor(cost, "cost").double().cpu()
        if cost.shape != logits.shape[:1]:
            raise ZtwError(f"cost: shape {tuple(cost.shape)}, must be ({logits.shape[0]},)")
        if not (cost > 0).all() or not (cost.diff() > 0).all():
            raise ZtwError(f"cost: must be positive and strictly increasing, got {cost.tolist()}")
        found = found._replace(cost=cost)
    return found


def _check_finite(logits: Tensor) -> None:
    smallest, largest = logits.aminmax()  # of anything and NaN both are NaN
    if smallest.isfinite() and largest.isfinite():
        return
    for name, found in (
        ("NaN", logits.isnan()),
        ("+inf", logits == torch.inf),
        ("-inf", logits == -torch.inf),
    ):
        if count := int(found.sum()):
            raise ZtwError(f"logits: {count} values are {name}, must be finite")


def class_labels(labels: Any) -> Tensor:
    """Take labels (N,) of any integer type as int64, which indexing needs; raises ZtwError for others."""
    labels = as_tensor(labels, "labels")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ZtwError(f"labels: {labels.dtype}, must be integers")
    return labels.long()


def floored(logits: Tensor) -> Tensor:
    """Finite log-probabilities (..., C) of logits (..., C)."""
    return logits.log_softmax(-1).clamp(min=LOG_FLOOR)


def read_predictions(path: Path | str) -> tuple[Tensor, Tensor]:
    """(logits float32 (K, N, C), labels int64 (N,)) of a split, from a safetensors file with these two names.

    Raises ZtwError when it is missing, truncated or no such file.
    """
    tensors = read_tensors(path)
    if missing := {"logits", "labels"} - tensors.keys():
        raise ZtwError(f"{path}: has no {' and no '.join(sorted(missing))}; is it a file of predictions?")
    return tensors["logits"], class_labels(tensors["labels"])
