"""Exit rules whose parameters are fitted on held-out samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ztw.exits.fitted_base import FittedRule
from ztw.exits.rule_base import State
from ztw.exits.temperatures import fit_temperatures

BINS = 50  # at most, per exit
LEAST = 20  # held-out samples per bin, if there are as many


class Pcee(FittedRule):
    """Leave when the estimated accuracy exceeds the threshold (Performance Control Early Exiting, PCEE, 2024).

    Each exit has a reliability curve: the accuracy of held-out samples by their confidence, the largest softmax
    probability. A threshold of 0.9 therefore means an accuracy of 90 % at every exit. It is written from the idea of
    the paper (Mofakhami et al., arXiv 2412.19325), whose estimates are constant within a bin and need not rise with the
    confidence. Here the curve rises strictly, so that few samples have equal scores:

    - Bins have equal numbers of samples, at least 20: up to 50 bins per exit. Equal confidences share a bin.
    - Neighbouring bins are pooled until the accuracy rises from bin to bin (isotonic regression).
    - Each bin counts one more sample, half of it correct, so that no estimate is 0 or 1.
    - Between the median confidences of two bins, the curve is linear. At the ends it leads to confidence 0, where the
      added sample is wrong, and to confidence 1, where it is correct.

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([2.0, 0.0]).expand(1, 39, 2)  # 1 exit with a confidence of 0.88
        >>> kind = ztw.fit_rule(logits, torch.arange(39) % 2, "pcee")  # 20 of 39 are correct
        >>> kind.score_at(0, logits[0, :1], ())[0]
        tensor([0.5125])
    """

    top = 1.0
    strict = True

    @staticmethod
    def fit_exit(logits: Tensor, labels: Tensor) -> list[float]:
        """Return the curve: the confidences, then as many accuracies. Both rise strictly."""
        confidence = logits.float().softmax(-1).amax(-1)
        bins = reliability_bins(confidence, logits.argmax(-1) == labels)
        (first, *_), (*_, last) = bins, bins
        confidences = [0.0, *(middle for middle, _, _ in bins)]
        accuracies = [first[1] / (first[2] + 1), *((right + 0.5) / (count + 1) for _, right, count in bins)]
        if confidences[-1] < 1:
            confidences.append(1.0)
            accuracies.append((last[1] + 1) / (last[2] + 1))
        return [*confidences, *accuracies]

    @staticmethod
    def fitted_score(logits: Tensor, state: State, fitted: Tensor) -> tuple[Tensor, State]:
        """Return the estimated accuracy (N,)."""
        confidences, accuracies = fitted.view(2, -1)
        confidence = logits.softmax(-1).amax(-1, keepdim=True)
        # share of each segment of the curve that lies below the confidence
        below = ((confidence - confidences[:-1]) / (confidences[1:] - confidences[:-1])).clamp(0, 1)
        return accuracies[0] + (below * (accuracies[1:] - accuracies[:-1])).sum(-1), ()


def reliability_bins(confidence: Tensor, correct: Tensor) -> list[tuple[float, int, int]]:
    """Return bins by rising confidence: their median confidence, correct samples and samples; see `Pcee`.

    Args:
        confidence: float32 (N,).
        correct: bool (N,), whether each prediction is correct.
    """
    samples = len(confidence)
    confidence, order = confidence.sort()
    right = torch.cat([torch.zeros(1, dtype=torch.int64), correct[order].cumsum(0)])
    # a bin ends only where the confidence changes
    possible = (
        torch.cat([confidence[1:] > confidence[:-1], torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0] + 1
    )
    bins = max(1, min(BINS, samples // LEAST))
    wanted = torch.arange(1, bins + 1) * samples // bins
    ends = possible[torch.searchsorted(possible, wanted)].unique().tolist()

    def accuracy(start: int, end: int) -> float:
        return (float(right[end] - right[start]) + 0.5) / (end - start + 1)

    pooled: list[tuple[int, int]] = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        while pooled and accuracy(*pooled[-1]) >= accuracy(start, end):
            start, _ = pooled.pop()
        pooled.append((start, end))
    return [
        (float(confidence[(start + end - 1) // 2]), int(right[end] - right[start]), end - start)
        for start, end in pooled
    ]


class Temperature(FittedRule):
    """Leave when the largest probability exceeds the threshold, after a temperature per exit (Guo et al. 2017).

    The temperature maximises the likelihood of the held-out labels. A shared threshold therefore means about the same
    at every exit.

    Example:
        >>> import torch, ztw
        >>> logits = torch.tensor([[[8.0, 0.0]] * 4, [[4.0, 0.0]] * 4])  # 2 exits, 4 samples
        >>> kind = ztw.fit_rule(logits, torch.tensor([0, 0, 0, 1]), "temperature")  # 3 of 4 are correct
        >>> kind.score_at(0, logits[0], ())[0]
        tensor([0.7500, 0.7500, 0.7500, 0.7500])
    """

    top = 1.0
    strict = True

    @staticmethod
    def fit_exit(logits: Tensor, labels: Tensor) -> list[float]:
        """Return the temperature; see `ztw.exits.temperatures.fit_temperatures`."""
        return fit_temperatures(logits[None], labels).tolist()

    @staticmethod
    def fitted_score(logits: Tensor, state: State, fitted: Tensor) -> tuple[Tensor, State]:
        """Return the largest probability (N,) of logits / temperature."""
        below = logits - logits.amax(-1, keepdim=True)  # so that a small temperature gives no infinity
        return (below / fitted[0]).softmax(-1).amax(-1), ()
