"""Fit a temperature per exit, which calibrates its probabilities. Pure functions of logits and labels.

Computations are in float64 on the CPU.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from scipy.optimize import brentq
from torch import Tensor

from ztw.exits.logits import check_logits

LARGEST_SCALE = 1e3  # upper bound of 1 / T; the lower bound is its inverse
LARGEST_LOG_SCALE = math.log(LARGEST_SCALE)
DRAFT = 2048  # the first search for a temperature uses about this many samples
NEAR = 0.05  # relative distance from its result that the second search, on all samples, covers
CHUNK = 2**16  # float64 numbers at once, so that they fit into the cache


def fit_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """Fit the temperature T > 0 of every exit that minimises the cross-entropy of logits / T (Guo et al. 2017).

    The problem is convex in 1 / T, which is kept within [1e-3, 1e3]. Logits that separate the classes perfectly give
    T = 1e-3, uninformative logits T = 1e3. Constant logits give T = 1, because every T is equally good. Labels of
    probability 0 are left out, because no T changes their probability.

    Args:
        logits: (K, N, C), not from the test split.
        labels: int (N,).

    Returns:
        float64 (K,).

    Raises:
        ZtwError: for malformed input.
    """
    logits, labels, _ = check_logits(logits, labels)
    return torch.tensor([_temperature(*one_exit(exit, labels)) for exit in logits], dtype=torch.float64)


def one_exit(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return one exit's logits (N, C) as float64 and labels as int64, on the CPU."""
    return logits.detach().cpu().double(), labels.cpu().long()


def _temperature(logits: Tensor, labels: Tensor) -> float:
    """Fit the temperature of one exit, logits float64 (N, C)."""
    at_label = logits.gather(1, labels[:, None])
    # The cross-entropy is logsumexp(margins * scale), with margins = logits - the label's logit
    return 1 / _best_scale(logits - at_label)


def _best_scale(margins: Tensor) -> float:
    """Return the scale within the bounds that minimises the mean of logsumexp(margins * scale): the root of its slope.

    With many samples, search on a subset first, then on all samples near the subset's minimum.
    """

    @cache  # the root finder evaluates the ends of its bracket again
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
    """Return the derivative in `scale` of the mean of logsumexp(margins * scale); it increases with `scale`."""
    parts = margins.split(max(1, CHUNK // margins.shape[1]))
    return sum(float((part * scale).softmax(-1).flatten() @ part.flatten()) for part in parts) / len(margins)
