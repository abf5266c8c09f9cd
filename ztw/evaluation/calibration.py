"""How far an exit's confidence can be believed: pure functions of logits and labels.

Everywhere logits may be unnormalised or log-probabilities; the confidence is the largest softmax probability;
bins are of equal width, (lo, hi], and 0 belongs to the first. Everything is computed in float64 on the CPU.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from scipy.optimize import brentq
from torch import Tensor

from ztw.errors import ZtwError
from ztw.exits.logits import LOG_FLOOR, check_logits

LARGEST_SCALE = 1e3  # 1 / T is looked for between its inverse and this
LARGEST_LOG_SCALE = math.log(LARGEST_SCALE)
DRAFT = 2048  # samples on which a temperature first comes near its best
NEAR = 0.05  # how far from there, as a share, that of all samples is looked for first
CHUNK = 2**16  # numbers in float64 at once: few enough to stay near the processor


def overthinking(logits: Tensor, labels: Tensor) -> float:
    """Share of all samples that some earlier exit has right and the last exit wrong.

    logits: (K, N, C); labels: integers (N,). Raises ZtwError for malformed input.
    What Kaya et al. (2019) call destructive overthinking.
    """
    logits, labels, _ = check_logits(logits, labels)
    right = logits.argmax(-1) == labels
    return float((right[:-1].any(0) & ~right[-1]).double().mean())


def fit_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature T > 0 of every exit that minimises the cross-entropy of logits / T, (K,) float64.

    logits: (K, N, C), of samples that are not the test split's; labels: integers (N,). Convex in 1 / T, which
    is kept within [1e-3, 1e3]: logits that separate the classes perfectly give 1e-3, uninformative ones 1e3,
    and constant ones, for which every T is as good, 1. A label of probability 0 keeps it at every T and does
    not count. Raises ZtwError for malformed input. Guo et al. 2017.
    """
    logits, labels, _ = check_logits(logits, labels)
    return torch.tensor([_temperature(*_one_exit(exit, labels)) for exit in logits], dtype=torch.float64)


def calibration(
    logits: Tensor, labels: Tensor, temperatures: Tensor | None = None, bins: int = 15
) -> dict[str, Tensor]:
    """Every measure of calibration at every exit, each (K,) float64, by name.

    logits: (K, N, C); labels: integers (N,); temperatures: (K,), from `fit_temperatures` on another split.
    Raises ZtwError for malformed input. With temperatures the first four again as ece_scaled,
    classwise_ece_scaled, brier_scaled, nll_scaled, of logits / temperature.

    - ece: mean |accuracy - confidence| over bins of the confidence, weighted by their samples, in [0, 1]
      (Guo et al. 2017)
    - classwise_ece: mean over the classes of the binned |frequency - mean probability| of that class, in
      [0, 1] (Kull et al. 2019; the static calibration error of Nixon et al. 2019)
    - brier: mean squared error of all class probabilities, summed, in [0, 2] (Brier 1950): the original,
      multi-class score, twice the binary one of scikit-learn
    - nll: mean negative log-probability of the label, in nats; probabilities are floored at float32's smallest
      normal number, so that a label of probability 0 costs 87.3 nats and not infinitely many
    - auroc: probability that a right answer has a higher confidence than a wrong one, ties counting half
      (Mann and Whitney's U / (right * wrong)); NaN when all answers are right or all are wrong
    """
    logits, labels, _ = check_logits(logits, labels)
    _check_temperatures(temperatures, len(logits))
    edges, exits = _edges(bins), []
    for k, exit in enumerate(logits):  # one at a time: the memory is that of one exit
        one, integers = _one_exit(exit, labels)
        right = one.argmax(-1) == integers
        found = _measures(one, integers, right, edges)
        found["auroc"] = _auroc(one.softmax(-1).amax(-1), right)
        if temperatures is not None:
            scaled = _measures(one / float(temperatures[k]), integers, right, edges)
            found |= {f"{name}_scaled": value for name, value in scaled.items()}
        exits.append(found)
    return {name: torch.tensor([exit[name] for exit in exits], dtype=torch.float64) for name in exits[0]}


def _measures(logits: Tensor, labels: Tensor, right: Tensor, edges: Tensor) -> dict[str, float]:
    """What a temperature changes, of one exit."""
    log_probs = logits.log_softmax(-1)
    likelihood = float(_likelihood(log_probs, labels))
    probs = log_probs.exp_()
    return {
        "ece": float(_top_error(probs, right, edges)),
        "classwise_ece": float(_class_error(probs, labels, edges)),
        "brier": float(_brier(probs, labels)),
        "nll": likelihood,
    }


def _one_exit(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One exit's logits (N, C) in float64 and labels in int64, on the CPU."""
    return logits.detach().cpu().double(), labels.cpu().long()


def _check_temperatures(temperatures: Tensor | None, exits: int) -> None:
    if temperatures is None:
        return
    if temperatures.shape != (exits,):
        raise ZtwError(f"temperatures: shape {tuple(temperatures.shape)}, must be ({exits},)")
    if not (temperatures.isfinite() & (temperatures > 0)).all():
        raise ZtwError(f"temperatures: must be positive and finite, got {temperatures.tolist()}")


def _edges(bins: int) -> Tensor:
    """The upper edges of all bins but the last, (bins - 1,)."""
    if bins < 1:
        raise ZtwError(f"bins {bins!r}: must be at least 1")
    return torch.arange(1, bins, dtype=torch.float64) / bins


def _top_error(probs: Tensor, right: Tensor, edges: Tensor) -> Tensor:
    confidence = probs.amax(-1)
    bin = torch.bucketize(confidence, edges)
    gap = torch.bincount(bin, confidence - right.double(), minlength=len(edges) + 1)
    return gap.abs().sum() / len(probs)


def _class_error(probs: Tensor, labels: Tensor, edges: Tensor) -> Tensor:
    """For each class and bin |sum of probabilities - number of labels| / N, summed over bins."""
    samples, num_classes = probs.shape
    bins = len(edges) + 1

    def cells(values: Tensor, of_class: Tensor) -> Tensor:
        return torch.bucketize(values, edges) + bins * of_class

    # with many classes nearly all probabilities lie in the first bin: it gets what the others leave
    row, column = (probs > edges[0]).nonzero(as_tuple=True) if bins > 1 else labels.new_zeros(2, 0)
    values = probs[row, column]
    gap = torch.bincount(cells(values, column), values, minlength=bins * num_classes).double()  # of none: int
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
    """Of a confidence (N,) for answers that are correct, bool (N,)."""
    right = int(correct.sum())
    wrong = len(correct) - right
    if not right or not wrong:
        return math.nan
    from scipy.stats import rankdata  # slow to import

    ranks = torch.from_numpy(rankdata(confidence.numpy()))
    return float((ranks[correct].sum() - right * (right + 1) / 2) / (right * wrong))


def _temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of one exit, logits float64 (N, C)."""
    at_label = logits.gather(1, labels[:, None])
    # relative to the label's: what is left of the cross-entropy is logsumexp(margins * scale)
    return 1 / _best_scale(logits - at_label)


def _best_scale(margins: Tensor) -> float:
    """Where the mean of logsumexp(margins * scale) is least, within the bounds: the root of its slope.

    Large sets are searched first around the minimum of a few of their samples, evenly taken.
    """

    @cache  # the root finder asks for the ends of its bracket again
    def slope(log_scale: float) -> float:
        return _slope(margins, math.exp(log_scale))

    low, high = -LARGEST_LOG_SCALE, LARGEST_LOG_SCALE
    if len(margins) > 2 * DRAFT:
        draft = math.log(_best_scale(margins[:: len(margins) // DRAFT]))
        near, far = max(low, draft - NEAR), min(high, draft + NEAR)
        if slope(near) < 0 < slope(far):
            low, high = near, far
    falls, rises = slope(high) <= 0, slope(low) >= 0
    if falls or rises:
        return 1.0 if falls and rises else LARGEST_SCALE if falls else 1 / LARGEST_SCALE
    return math.exp(brentq(slope, low, high, xtol=1e-10))


def _slope(margins: Tensor, scale: float) -> float:
    """Derivative in `scale`, which it rises with, of the mean of logsumexp(margins * scale)."""
    parts = margins.split(max(1, CHUNK // margins.shape[1]))
    return sum(float((part * scale).softmax(-1).flatten() @ part.flatten()) for part in parts) / len(margins)
