"""Measure the calibration of exits: how well confidence matches accuracy. Pure functions of logits and labels.

Logits may be unnormalised or log-probabilities. Confidence is the largest softmax probability. Bins have equal
width, (lo, hi]; 0 belongs to the first bin. All computations are in float64 on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.exits.logits import LOG_FLOOR, check_logits
from ztw.exits.temperatures import one_exit


def overthinking(logits: Tensor, labels: Tensor) -> float:
    """Return the share of samples that an earlier exit classifies correctly and the last exit does not.

    Kaya et al. (2019) call it destructive overthinking.

    Args:
        logits: (K, N, C).
        labels: int (N,).

    Raises:
        ZtwError: for malformed input.
    """
    logits, labels, _ = check_logits(logits, labels)
    right = logits.argmax(-1) == labels
    return float((right[:-1].any(0) & ~right[-1]).double().mean())


def calibration(
    logits: Tensor, labels: Tensor, temperatures: Tensor | None = None, bins: int = 15
) -> dict[str, Tensor]:
    """Compute all calibration metrics of every exit.

    - ece: mean |accuracy - confidence| over bins of the confidence, weighted by samples, in [0, 1]
      (Guo et al. 2017)
    - classwise_ece: mean over classes of the binned |frequency - mean probability| of the class, in
      [0, 1] (Kull et al. 2019; the static calibration error of Nixon et al. 2019)
    - brier: squared error summed over class probabilities, mean over samples, in [0, 2] (Brier 1950). For two
      classes it is twice scikit-learn's score.
    - nll: mean negative log-probability of the label, in nats. A probability of 0 counts as float32's smallest normal
      number, 87.3 nats, instead of infinity.
    - auroc: probability that a correct prediction has a higher confidence than a wrong one; ties count half
      (Mann and Whitney's U / (correct * wrong)). NaN if all predictions are correct or all are wrong.

    Args:
        logits: (K, N, C).
        labels: int (N,).
        temperatures: (K,), from `fit_temperatures` on another split. If given, the result also has ece_scaled,
            classwise_ece_scaled, brier_scaled and nll_scaled, the metrics of logits / temperature.

    Returns:
        name -> float64 (K,).

    Raises:
        ZtwError: for malformed input.
    """
    logits, labels, _ = check_logits(logits, labels)
    _check_temperatures(temperatures, len(logits))
    edges, exits = _edges(bins), []
    for k, exit in enumerate(logits):  # one at a time, to save memory
        one, integers = one_exit(exit, labels)
        right = one.argmax(-1) == integers
        found = _measures(one, integers, right, edges)
        found["auroc"] = _auroc(one.softmax(-1).amax(-1), right)
        if temperatures is not None:
            scaled = _measures(one / float(temperatures[k]), integers, right, edges)
            found |= {f"{name}_scaled": value for name, value in scaled.items()}
        exits.append(found)
    return {name: torch.tensor([exit[name] for exit in exits], dtype=torch.float64) for name in exits[0]}


def _measures(logits: Tensor, labels: Tensor, right: Tensor, edges: Tensor) -> dict[str, float]:
    """Compute the metrics of one exit that depend on the temperature."""
    log_probs = logits.log_softmax(-1)
    likelihood = float(_likelihood(log_probs, labels))
    probs = log_probs.exp_()
    return {
        "ece": float(_top_error(probs, right, edges)),
        "classwise_ece": float(_class_error(probs, labels, edges)),
        "brier": float(_brier(probs, labels)),
        "nll": likelihood,
    }


def _check_temperatures(temperatures: Tensor | None, exits: int) -> None:
    if temperatures is None:
        return
    if temperatures.shape != (exits,):
        raise ZtwError(f"temperatures: shape {tuple(temperatures.shape)}, must be ({exits},)")
    if not (temperatures.isfinite() & (temperatures > 0)).all():
        raise ZtwError(f"temperatures: must be positive and finite, got {temperatures.tolist()}")


def _edges(bins: int) -> Tensor:
    """Return the upper edges of all bins but the last, (bins - 1,)."""
    if bins < 1:
        raise ZtwError(f"bins {bins!r}: must be at least 1")
    return torch.arange(1, bins, dtype=torch.float64) / bins


def _top_error(probs: Tensor, right: Tensor, edges: Tensor) -> Tensor:
    confidence = probs.amax(-1)
    bin = torch.bucketize(confidence, edges)
    gap = torch.bincount(bin, confidence - right.double(), minlength=len(edges) + 1)
    return gap.abs().sum() / len(probs)


def _class_error(probs: Tensor, labels: Tensor, edges: Tensor) -> Tensor:
    """Return |sum of probabilities - number of labels| / N, summed over bins and averaged over classes."""
    samples, num_classes = probs.shape
    bins = len(edges) + 1

    def cells(values: Tensor, of_class: Tensor) -> Tensor:
        return torch.bucketize(values, edges) + bins * of_class

    # With many classes nearly all probabilities lie in the first bin: it is the total minus the other bins
    row, column = (probs > edges[0]).nonzero(as_tuple=True) if bins > 1 else labels.new_zeros(2, 0)
    values = probs[row, column]
    gap = torch.bincount(cells(values, column), values, minlength=bins * num_classes).double()  # int if empty
    gap[::bins] += probs.sum(0) - torch.bincount(column, values, minlength=num_classes)
    gap -= torch.bincount(cells(probs.gather(1, labels[:, None])[:, 0], labels), minlength=bins * num_classes)
    return gap.abs().sum() / (samples * num_classes)


def _brier(probs: Tensor, labels: Tensor) -> Tensor:
    of_label = probs.gather(1, labels[:, None])
    flat = probs.flatten()
    return (flat @ flat - 2 * of_label.sum()) / len(probs) + 1


def _likelihood(log_probs: Tensor, labels: Tensor) -> Tensor:
    return -log_probs.gather(1, labels[:, None]).clamp(min=LOG_FLOOR).mean()


def _auroc(confidence: Tensor, correct: Tensor) -> float:
    """Compute the AUROC of confidences (N,) of predictions that are correct, bool (N,)."""
    right = int(correct.sum())
    wrong = len(correct) - right
    if not right or not wrong:
        return math.nan
    from scipy.stats import rankdata  # slow to import

    ranks = torch.from_numpy(rankdata(confidence.numpy()))
    return float((ranks[correct].sum() - right * (right + 1) / 2) / (right * wrong))
