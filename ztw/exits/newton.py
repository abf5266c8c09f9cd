"""Minimising a convex function of few variables, each with a lower bound."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# A Hessian serves for another step while a step with it cuts the gradient to this share.
GOOD_STEP = 0.3

# Value, gradient, and the Hessian where it is asked for
Terms = tuple[float, Tensor, Callable[[], Tensor]]


def minimise(
    objective: Callable[[Tensor], Terms],
    start: Tensor,
    lower: Tensor,
    tolerance: float = 1e-8,
    iterations: int = 100,
) -> Tensor:
    """Minimise a convex function over x >= lower by projected Newton steps (Bertsekas 1982).

    objective: x -> its terms; start, lower: (M,) float64. The Hessian is the costly part: near the minimum, where
    it hardly changes, one serves for several steps. It may be of single precision. Stops when the projected
    gradient falls below `tolerance`, or the decrease of the value does (separable data have no finite
    minimiser, only a vanishing decrease) in a step whose Hessian was new or still good.
    """
    x = start.clamp(min=lower)
    value, gradient, hessian = objective(x)
    curvature: Tensor | None = None
    for _ in range(iterations):
        free = (x > lower + 1e-12) | (gradient < 0)
        if not free.any() or (steepness := _steepness(gradient, free)) < tolerance:
            break
        fresh = curvature is None
        if curvature is None:
            curvature = hessian()
        step = _newton_step(curvature, gradient, free)
        for halvings in range(40):  # until the projected point decreases the value enough (Armijo)
            candidate = torch.maximum(x + step * 0.5**halvings, lower)
            new_value, new_gradient, new_hessian = objective(candidate)
            if new_value <= value + 1e-4 * float(gradient @ (candidate - x)):
                break
        else:
            if fresh:
                break
            curvature = None
            continue
        decrease = value - new_value
        x, value, gradient, hessian = candidate, new_value, new_gradient, new_hessian
        good = _steepness(gradient, free) <= GOOD_STEP * steepness
        if decrease < tolerance * max(abs(value), 1e-4) and (fresh or good):
            break
        if not good:
            curvature = None
    return x


def _steepness(gradient: Tensor, free: Tensor) -> float:
    return float(torch.where(free, gradient, 0).abs().max())


def _newton_step(curvature: Tensor, gradient: Tensor, free: Tensor) -> Tensor:
    """The Newton step in the free variables, 0 in the others."""
    inside = curvature[free][:, free]
    # a common shift of all biases changes nothing: the ridge, above the rounding of single precision, makes
    # the Hessian invertible
    ridge = 1e-6 * (1 + float(inside.diagonal().max()))
    step = torch.zeros_like(gradient)
    step[free] = -torch.linalg.solve(
        inside + ridge * torch.eye(len(inside), dtype=inside.dtype), gradient[free]
    )
    return step
