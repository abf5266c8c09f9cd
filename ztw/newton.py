"""Minimising a convex function of few variables, each with a lower bound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def minimise(
    terms: Callable[[Tensor], tuple[float, Tensor, Tensor]],
    start: Tensor,
    lower: Tensor,
    tolerance: float = 1e-8,
    iterations: int = 100,
) -> Tensor:
    """Minimise a convex function over x >= lower by projected Newton steps (Bertsekas 1982).

    terms: x -> (value, gradient, Hessian). Stops when the projected gradient or the decrease of the
    value falls below `tolerance` (separable data have no finite minimiser, only a vanishing decrease).
    """
    x = start.clamp(min=lower)
    value, gradient, hessian = terms(x)
    for _ in range(iterations):
        free = (x > lower + 1e-12) | (gradient < 0)
        if not free.any() or float(gradient[free].abs().max()) < tolerance:
            break
        curvature = hessian[free][:, free]
        # a common shift of all biases changes nothing: the ridge makes the Hessian invertible
        ridge = 1e-9 * (1 + float(curvature.diagonal().max()))
        step = torch.zeros_like(x)
        step[free] = -torch.linalg.solve(
            curvature + ridge * torch.eye(len(curvature), dtype=x.dtype), gradient[free]
        )
        for halvings in range(40):  # until the projected point decreases the value enough (Armijo)
            candidate = torch.maximum(x + step * 0.5**halvings, lower)
            new_value, new_gradient, new_hessian = terms(candidate)
            if new_value <= value + 1e-4 * float(gradient @ (candidate - x)):
                break
        else:
            break
        decrease = value - new_value
        x, value, gradient, hessian = candidate, new_value, new_gradient, new_hessian
        if decrease < tolerance * max(abs(value), 1e-4):
            break
    return x
