"""What the fit of an ensemble minimises, with the derivatives that `minimise` asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from ztw.exits.newton import Terms

# Probabilities held in float64 at once: few enough to stay near the processor.
CHUNK = 250_000


class GeometricObjective:
    """Mean cross-entropy of the geometric ensemble in x = (s, b), its gradient (float64) and its Hessian.

    log_probs: float32 (m, N, C); labels: (N,).
    """

    def __init__(self, log_probs: Tensor, labels: Tensor) -> None:
        self.log_probs, self.labels = log_probs, labels
        self.members, samples, self.num_classes = log_probs.shape
        size = max(64, CHUNK // (self.members * self.num_classes))
        self.parts = [slice(start, start + size) for start in range(0, samples, size)]

    def __call__(self, x: Tensor) -> Terms:
        """The terms at x float64 (m + C,)."""
        value, gradient = torch.zeros((), dtype=x.dtype), torch.zeros_like(x)
        for part in self.parts:
            features, log_q = self._log_q(part, x)
            labels = self.labels[part]
            value -= log_q.gather(1, labels[:, None]).sum()
            error = log_q.exp_()
            error[torch.arange(len(error)), labels] -= 1
            gradient += torch.cat([features @ error.view(-1), error.sum(0)])
        samples = len(self.labels)
        return float(value / samples), gradient / samples, lambda: self._hessian(x)

    def _log_q(self, part: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features, which x weighs, (m, n * C), and log q (n, C) of a part's samples, as precise as x."""
        features = self.log_probs[:, part].to(x.dtype).flatten(1) / self.members
        total = (x[: self.members] @ features).view(-1, self.num_classes) + x[self.members :]
        return features, total.log_softmax(-1)

    def _hessian(self, x: Tensor) -> Tensor:
        """In float32 within a part: it only has to point the way."""
        m = self.members
        hessian = torch.zeros(len(x), len(x), dtype=x.dtype)
        for part in self.parts:
            features, log_q = self._log_q(part, x.float())
            q = log_q.exp_()
            weighted = features * q.view(-1)
            by_sample = weighted.view(m, -1, self.num_classes)
            mean = by_sample.sum(-1)  # (m, n): the features' expectation under q
            hessian[:m, :m] += weighted @ features.T - mean @ mean.T
            hessian[:m, m:] += by_sample.sum(1) - mean @ q
            hessian[m:, m:] += torch.diag(q.sum(0)) - q.T @ q
        hessian[m:, :m] = hessian[:m, m:].T
        return hessian / len(self.labels)


def mixture_objective(x: Tensor, components: Tensor) -> Terms:
    """Mean negative log-likelihood of a mixture in its shares x (M,), with its derivatives.

    components: float64 (N, M), what each gives the label of each sample; + sum(x) - 1 makes the best x add up
    to 1. Infinite where a label's probability is 0.
    """
    density = components @ x
    if not (density > 0).all():
        return float("inf"), torch.zeros_like(x), lambda: torch.eye(len(x), dtype=x.dtype)

    def hessian() -> Tensor:
        ratio = components / density[:, None]
        return ratio.T @ ratio / len(ratio)

    value = float(x.sum() - 1 - density.log().mean())
    return value, 1 - components.T @ (1 / density) / len(density), hessian
