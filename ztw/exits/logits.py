"""Checks of logits and labels, finite log-probabilities, and files of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.tensors import as_tensor, read_tensors

# Log of the smallest normal float32. Without this limit, the log of a probability of 0 is not finite.
LOG_FLOOR = float(torch.tensor(torch.finfo(torch.float32).tiny).log())


class Checked(NamedTuple):
    """Result of `check_logits`. A tensor is empty if the argument was not given."""

    logits: Tensor
    labels: Tensor
    cost: Tensor


def check_logits(logits: Any, labels: Any = None, cost: Any = None, increasing: bool = True) -> Checked:
    """Check logits (K, N, C), labels (N,) and cost (K,), and convert them to tensors.

    Args:
        logits: finite floating-point numbers.
        labels: integers in 0..C-1, see `class_labels`.
        cost: positive and strictly increasing.
        increasing: False = the cost only needs to be positive.

    Returns:
        The logits, the labels in int64, and the cost in float64 on the CPU.

    Raises:
        ZtwError: for any other value.
    """
    logits = as_tensor(logits, "logits")
    found = Checked(logits, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
    if logits.dim() != 3 or 0 in logits.shape:
        raise ZtwError(
            f"logits: shape {tuple(logits.shape)}, must be (exits, samples, classes), all at least 1"
        )
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
        if not (cost > 0).all() or (increasing and not (cost.diff() > 0).all()):
            wanted = "positive and strictly increasing" if increasing else "positive"
            raise ZtwError(f"cost: must be {wanted}, got {cost.tolist()}")
        found = found._replace(cost=cost)
    return found


def _check_finite(logits: Tensor) -> None:
    smallest, largest = logits.aminmax()  # both are NaN if any value is NaN
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
    """Convert labels (N,) of any integer type to int64, which indexing needs; raise ZtwError for other types."""
    labels = as_tensor(labels, "labels")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ZtwError(f"labels: {labels.dtype}, must be integers")
    return labels.long()


def floored(logits: Tensor) -> Tensor:
    """Convert logits (..., C) to log-probabilities (..., C) with a lower limit, so that they are finite."""
    return logits.log_softmax(-1).clamp(min=LOG_FLOOR)


def read_predictions(path: Path | str) -> tuple[Tensor, Tensor]:
    """Read the predictions of a split from a safetensors file.

    Returns:
        Logits float32 (K, N, C) and labels int64 (N,).

    Raises:
        ZtwError: if the file is missing, altered, or not a file of predictions.
    """
    tensors = read_tensors(path)
    if missing := {"logits", "labels"} - tensors.keys():
        raise ZtwError(f"{path}: has no {' and no '.join(sorted(missing))}; is it a file of predictions?")
    return tensors["logits"], class_labels(tensors["labels"])


def read_together(files: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Read the logits of all networks of a cascade (K, N, C), and the labels (N,).

    Raises:
        ZtwError: if the files have other labels than the first.
    """
    found = [read_predictions(file) for file in files]
    for file, (_, labels) in zip(files, found, strict=True):
        if not torch.equal(labels, found[0][1]):
            raise ZtwError(f"{file}: other labels than {files[0]}; compute both again")
    return torch.cat([logits for logits, _ in found]), found[0][1]
