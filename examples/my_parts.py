"""A rule and an ensemble of one's own: a study that lists this file under `plugins` names them like built-in ones."""

from torch import Tensor

import ztw


@ztw.register("rule", "margin")
class Margin(ztw.ThresholdRule):
    """Leave when the largest probability is more than `threshold` above the second largest."""

    top = 1.0  # the best score there is

    @staticmethod
    def score(logits: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        """Logits (N, C) of one exit -> the margin (N,), and nothing to remember for the next exit."""
        largest = logits.softmax(-1).topk(2).values
        return largest[:, 0] - largest[:, 1], ()

    @staticmethod
    def worst(num_classes: int) -> float:
        """Of the uniform distribution."""
        return 0.0


@ztw.register("ensemble", "median")
class Median(ztw.Ensemble):
    """Per class the median over the exits so far: no sum of what each exit says, and nothing to fit."""

    def combine(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities (m, N, C) of exits 1 ... m -> what exit m answers, (N, C)."""
        exits, ordered = len(log_probs), log_probs.sort(0).values
        return (ordered[(exits - 1) // 2] + ordered[exits // 2]) / 2
