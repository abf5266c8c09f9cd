"""How far an exit's confidence can be believed: pure functions of logits and labels.

Everywhere logits may be unnormalised or log-probabilities, -inf (probability 0) included; the confidence is
the largest softmax probability; bins are of equal width, (lo, hi], and 0 belongs to the first. Everything
is computed in float64 on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.exits.logits import LOG_FLOOR, check_logits

LARGEST_SCALE = 1e3  # 1 / T is looked for between its inverse and this
DRAFT = 2048  # samples on which a temperature first comes near its best
CHUNK = 2**16  # numbers in float64 at once: few enough to stay near the processor


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean |accuracy - confidence| over bins of the confidence, weighted by their samples, in [0, 1].

    logits: (N, C); labels: integers (N,). Raises ZtwError for malformed input.
    ECE (Guo et al. 2017).
    """
    logits, labels = _one_exit(logits, labels)
    return float(_top_error(logits.softmax(-1), _is_right(logits, labels), _edges(bins)))


def classwise_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean over the classes of the binned |frequency - mean probability| of that class, in [0, 1].

    logits: (N, C); labels: integers (N,). Raises ZtwError for malformed input.
    Classwise ECE (Kull et al. 2019; the static calibration error of Nixon et al. 2019).
    """
    logits, labels = _one_exit(logits, labels)
    return float(_class_error(logits.softmax(-1), labels, _edges(bins)))


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean over the samples of the squared error of all class probabilities, summed, in [0, 2].

    logits: (N, C); labels: integers (N,). Raises ZtwError for malformed input.
    The original, multi-class score (Brier 1950): twice the binary one of scikit-learn.
    """
    logits, labels = _one_exit(logits, labels)
    return float(_brier(logits.softmax(-1), labels))


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-probability of the label, in nats.

    logits: (N, C); labels: integers (N,). Raises ZtwError for malformed input. Probabilities are floored at
    float32's smallest normal number, so that a label of probability 0 costs 87.3 nats and not infinitely many.
    """
    logits, labels = _one_exit(logits, labels)
    return float(_likelihood(logits.log_softmax(-1), labels))


def confidence_auroc(confidence: Tensor, correct: Tensor) -> float:
    """Probability that a right answer has a higher confidence than a wrong one; ties count half.

    confidence: (N,), any score that orders the samples; correct: bool (N,). NaN when all answers are right
    or all are wrong. Raises ZtwError for malformed input. Mann and Whitney's U / (right * wrong).
    """
    if confidence.dim() != 1 or confidence.shape != correct.shape or not len(correct):
        shapes = f"shapes {tuple(confidence.shape)} and {tuple(correct.shape)}"
        raise ZtwError(f"confidence and correct: {shapes}, must both be (samples,), not none")
    if confidence.isnan().any():
        raise ZtwError(f"confidence: {int(confidence.isnan().sum())} values are NaN")
    correct = correct.cpu().bool()
    _, which, counts = confidence.detach().cpu().unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - (counts - 1).double() / 2)[which]  # the mean rank of equal values
    right = int(correct.sum())
    wrong = len(correct) - right
    if not right or not wrong:
        return math.nan
    return float((rank[correct].sum() - right * (right + 1) / 2) / (right * wrong))


def overthinking(logits: Tensor, labels: Tensor) -> float:
    """Share of all samples that some earlier exit has right and the last exit wrong.

    logits: (K, N, C); labels: integers (N,). Raises ZtwError for malformed input.
    What Kaya et al. (2019) call destructive overthinking.
    """
    check_logits(logits, labels)
    right = logits.argmax(-1) == labels
    return float((right[:-1].any(0) & ~right[-1]).double().mean())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T > 0 that minimises the cross-entropy of logits / T (Guo et al. 2017).

    logits: (N, C), of samples that are not the test split's; labels: integers (N,). Convex in 1 / T, which is
    kept within [1e-3, 1e3]: logits that separate the classes perfectly give 1e-3, uninformative ones 1e3,
    and constant ones, for which every T is as good, 1. A label of probability 0 keeps it at every T and does
    not count. Raises ZtwError for malformed input.
    """
    logits, labels = _one_exit(logits, labels)
    at_label = logits.gather(1, labels[:, None])
    possible = at_label.flatten() > -torch.inf
    # relative to the label's: what is left of the cross-entropy is logsumexp(margins * scale)
    margins = (logits - at_label)[possible].clamp(min=torch.finfo(torch.float64).min)
    return 1 / _best_scale(margins) if len(margins) else 1.0


def fit_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """The temperature of every exit, (K,) float64, as `fit_temperature` of each.

    logits: (K, N, C); labels: integers (N,). Raises ZtwError for malformed input.
    """
    check_logits(logits, labels)
    return torch.tensor([fit_temperature(exit, labels) for exit in logits], dtype=torch.float64)


def calibration(
    logits: Tensor, labels: Tensor, temperatures: Tensor | None = None, bins: int = 15
) -> dict[str, Tensor]:
    """Every measure of calibration at every exit, each (K,) float64, by name.

    logits: (K, N, C); labels: integers (N,); temperatures: (K,), from `fit_temperatures` on another split.
    Names: ece, classwise_ece, brier, nll, auroc; with temperatures also ece_scaled, classwise_ece_scaled,
    brier_scaled, nll_scaled, of logits / temperature. Raises ZtwError for malformed input.
    """
    check_logits(logits, labels)
    _check_temperatures(temperatures, len(logits))
    edges, exits = _edges(bins), []
    for k, exit in enumerate(logits):  # one at a time: the memory is that of one exit
        one, integers = _one_exit(exit, labels)
        right = _is_right(one, integers)
        found = _measures(one, integers, right, edges)
        found["auroc"] = confidence_auroc(one.softmax(-1).amax(-1), right)
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
    """One exit's logits (N, C) in float64 and labels in int64, on the CPU, once they are known to be sound."""
    if logits.dim() != 2:
        raise ZtwError(f"logits: shape {tuple(logits.shape)}, must be (samples, classes)")
    check_logits(logits[None], labels)
    if labels.is_floating_point():
        raise ZtwError(f"labels: {labels.dtype}, must be integers")
    logits = logits.detach().cpu().double()
    if not logits.amax(-1).isfinite().all():
        raise ZtwError("logits: a sample's largest is infinite, must be finite")
    return logits, labels.cpu().long()


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


def _is_right(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(-1) == labels


def _top_error(probs: Tensor, right: Tensor, edges: Tensor) -> Tensor:
    confidence = probs.amax(-1)
    bin = torch.bucketize(confidence, edges)
    gap = torch.bincount(bin, confidence - right.double(), minlength=len(edges) + 1)
    return gap.abs().sum() / len(probs)


def _class_error(probs: Tensor, labels: Tensor, edges: Tensor) -> Tensor:
    """For each class and bin |sum of probabilities - number of labels| / N, summed over bins."""
    samples, classes = probs.shape
    bins = len(edges) + 1

    def cells(values: Tensor, of_class: Tensor) -> Tensor:
        return torch.bucketize(values, edges) + bins * of_class

    # with many classes nearly all probabilities lie in the first bin: it gets what the others leave
    row, column = (probs > edges[0]).nonzero(as_tuple=True) if bins > 1 else labels.new_zeros(2, 0)
    values = probs[row, column]
    gap = torch.bincount(cells(values, column), values, minlength=bins * classes).double()  # of none: int
    gap[::bins] += probs.sum(0) - torch.bincount(column, values, minlength=classes)
    gap -= torch.bincount(cells(probs.gather(1, labels[:, None])[:, 0], labels), minlength=bins * classes)
    return gap.abs().sum() / (samples * classes)


def _brier(probs: Tensor, labels: Tensor) -> Tensor:
    of_label = probs.gather(1, labels[:, None])
    flat = probs.flatten()
    return (flat @ flat - 2 * of_label.sum()) / len(probs) + 1


def _likelihood(log_probs: Tensor, labels: Tensor) -> Tensor:
    return -log_probs.gather(1, labels[:, None]).clamp(min=LOG_FLOOR).mean()


def _slopes(margins: Tensor, scale: float) -> tuple[float, float]:
    """First and second derivative in `scale` of the mean of logsumexp(margins * scale)."""
    slope = curvature = 0.0
    for part in margins.split(max(1, CHUNK // margins.shape[1])):
        probs = (part * scale).softmax(-1)
        moment = probs.mul_(part)
        mean = moment.sum(-1)
        slope += float(mean.sum())
        curvature += float((moment.mul_(part).sum(-1) - mean.square()).sum())
    return slope / len(margins), curvature / len(margins)


def _best_scale(margins: Tensor) -> float:
    """Where the mean of logsumexp(margins * scale) is least, within the bounds: Newton, kept in a bracket.

    Large sets are started where a few of their samples, evenly taken, have their minimum.
    """
    low, high = 1 / LARGEST_SCALE, LARGEST_SCALE
    drafted = len(margins) > 2 * DRAFT
    scale, step = _best_scale(margins[:: len(margins) // DRAFT]) if drafted else 1.0, math.inf
    if not drafted or scale in (low, high, 1.0):  # 1: the few do not tell
        falls, rises = _slopes(margins, high)[0] <= 0, _slopes(margins, low)[0] >= 0
        if falls or rises:
            return 1.0 if falls and rises else high if falls else low
    for _ in range(200):
        slope, curvature = _slopes(margins, scale)
        if slope == 0:
            break
        low, high = (scale, high) if slope < 0 else (low, scale)
        best = scale - slope / curvature if curvature > 0 else math.nan
        if not (low <= best <= high and abs(best - scale) < step / 2):  # NaN too
            best = math.sqrt(low * high)
        scale, step = best, abs(best - scale)
        if step <= 1e-10 * scale:
            break
    return scale
