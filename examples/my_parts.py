"""Your own rule and ensemble. A study with this file under `plugins` uses them like built-in parts."""

from torch import Tensor

import ztw


@ztw.register("rule", "margin")
class Margin(ztw.ThresholdRule):
    """Leave when the largest probability is more than `threshold` above the second largest."""

    top = 1.0  # the best possible score

    @staticmethod
    def score(logits: Tensor, state: tuple) -> tuple[Tensor, tuple]:
        """Return the margin (N,) for logits (N, C) of one exit, and an empty state for the next exit."""
        largest = logits.softmax(-1).topk(2).values
        return largest[:, 0] - largest[:, 1], ()

    @staticmethod
    def worst(num_classes: int) -> float:
        """Return the score of the uniform distribution."""
        return 0.0


@ztw.register("ensemble", "median")
class Median(ztw.Ensemble):
    """The median over all exits so far, for each class; there is nothing to fit."""

    def combine(self, log_probs: Tensor) -> Tensor:
        """Return the prediction (N, C) of exit m for log-probabilities (m, N, C) of exits 1 to m."""
        exits, ordered = len(log_probs), log_probs.sort(0).values
        return (ordered[(exits - 1) // 2] + ordered[exits // 2]) / 2
