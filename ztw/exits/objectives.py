"""Objectives for fitting ensembles, with their gradients, and their minimisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

# x (M,) float64 -> value and gradient (M,) float64
Objective = Callable[[Tensor], tuple[float, Tensor]]

# Number of probabilities in float64 that fit into the processor's cache.
CHUNK = 250_000


class GeometricObjective:
    """Mean cross-entropy of one exit of the geometric ensemble as a function of x = (s, b), with its gradient."""

    def __init__(self, log_probs: Tensor, labels: Tensor) -> None:
        self.log_probs, self.labels = log_probs, labels
        self.members, samples, self.num_classes = log_probs.shape
        size = max(64, CHUNK // (self.members * self.num_classes))
        self.parts = [slice(start, start + size) for start in range(0, samples, size)]

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        """Return the value and the gradient at x float64 (m + C,)."""
        value, gradient = torch.zeros((), dtype=x.dtype), torch.zeros_like(x)
        for part in self.parts:
            features, log_q = self._log_q(part, x)
            labels = self.labels[part]
            value -= log_q.gather(1, labels[:, None]).sum()
            error = log_q.exp_()
            error[torch.arange(len(error)), labels] -= 1
            gradient += torch.cat([features @ error.view(-1), error.sum(0)])
        samples = len(self.labels)
        return float(value / samples), gradient / samples

    def _log_q(self, part: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p / m (m, n * C) and log q (n, C) for a part of the samples, in x's precision."""
        features = self.log_probs[:, part].to(x.dtype).flatten(1) / self.members
        total = (x[: self.members] @ features).view(-1, self.num_classes) + x[self.members :]
        return features, total.log_softmax(-1)


def mixture_objective(x: Tensor, components: Tensor) -> tuple[float, Tensor]:
    """Compute the mean negative log-likelihood of a mixture, and its gradient in the shares.

    The added term sum(x) - 1 makes the shares at the minimum sum to 1.

    Args:
        x: (M,) shares.
        components: float64 (N, M), probability of each sample's label under each component.

    Returns:
        Value and gradient (M,); the value is infinite if a label has probability 0.
    """
    density = components @ x
    if not (density > 0).all():
        return float("inf"), torch.zeros_like(x)

    value = float(x.sum() - 1 - density.log().mean())
    return value, 1 - components.T @ (1 / density) / len(density)


def minimise(objective: Objective, start: Tensor, lower: Tensor, tolerance: float = 1e-12) -> Tensor:
    """Minimise a convex function over x >= lower with scipy's L-BFGS-B (Byrd et al. 1995).

    Args:
        objective: returns value and gradient at x.
        start: (M,) float64.
        lower: (M,) float64, -inf where x has no bound.
        tolerance: relative decrease of the value at which to stop. Separable data need it: they have no minimum.

    Returns:
        x (M,) float64.
    """
    from scipy.optimize import minimize  # a slow import that few jobs need

    def at(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(torch.from_numpy(x))
        return value, gradient.numpy()

    limits = {"maxiter": 10_000, "maxfun": 20_000, "ftol": tolerance, "gtol": 1e-8}
    bounds = [(bound, None) for bound in lower.tolist()]
    found = minimize(
        at, start.clamp(min=lower).numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=limits
    )
    return torch.from_numpy(found.x)
