"""Newton's minimiser against a minimum worked out by hand and scipy's L-BFGS-B on what the ensembles minimise."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from test_ensembles import real_logits

from ztw.exits.newton import minimise
from ztw.exits.objectives import GeometricObjective, mixture_objective


def test_a_bound_is_respected():
    # (x - 1)^2 + (y + 2)^2 with y >= 0 has its minimum at (1, 0)
    def objective(x):
        d = x - torch.tensor([1.0, -2.0], dtype=torch.float64)
        return float((d**2).sum()), 2 * d, lambda: 2 * torch.eye(2, dtype=torch.float64)

    lower = torch.tensor([-torch.inf, 0.0], dtype=torch.float64)
    found = minimise(objective, torch.tensor([5.0, 5.0], dtype=torch.float64), lower)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("wrong", [1.0, 1e-3])
def test_few_hessians_are_asked_for_and_a_bad_one_does_no_harm(wrong):
    # sum of exp(a x) - b x: the curvature far from the minimum is worthless near it; the third is `wrong` times right
    a, b = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 0.5], dtype=torch.float64)
    asked = {"hessian": 0}

    def objective(x):
        return float(((a * x).exp() - b * x).sum()), a * (a * x).exp() - b, lambda: hessian(x)

    def hessian(x):
        asked["hessian"] += 1
        return torch.diag(a**2 * (a * x).exp()) * (wrong if asked["hessian"] == 3 else 1)

    start, lower = torch.tensor([4.0, -3.0]).double(), torch.full((2,), -torch.inf, dtype=torch.float64)
    found = minimise(objective, start, lower, tolerance=1e-12)
    torch.testing.assert_close(found, (b / a).log() / a, atol=1e-6, rtol=0)
    assert asked["hessian"] <= 8, "a new one for every step would be 10 or more"


def as_scipy(objective, start, lower):
    """The least value that scipy's L-BFGS-B finds, from the same derivatives and start."""

    def value_and_gradient(x):
        value, gradient, _ = objective(torch.from_numpy(x))
        return value, gradient.numpy()

    return minimize(
        value_and_gradient,
        start.numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(bound, None) for bound in lower.tolist()],
        options={"maxiter": 5000, "maxfun": 50_000, "ftol": 1e-14, "gtol": 1e-9},
    ).fun


@pytest.mark.parametrize("members", [1, 5])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 10.0])
def test_no_worse_than_l_bfgs_b_on_the_geometric_ensemble(members, sharpness):
    logits, labels = real_logits(500)
    objective = GeometricObjective((sharpness * logits[:members]).log_softmax(-1), labels)
    start = torch.cat([torch.ones(members), torch.zeros(10)]).double()
    lower = torch.cat([torch.zeros(members), torch.full((10,), -torch.inf)]).double()
    ours, reference = objective(minimise(objective, start, lower))[0], as_scipy(objective, start, lower)
    assert ours <= reference + 1e-9


@pytest.mark.parametrize("members", [1, 5])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 10.0])
def test_no_worse_than_l_bfgs_b_on_the_mixture(members, sharpness):
    logits, labels = real_logits(500)
    likelihood = (sharpness * logits[:members]).double().softmax(-1)[:, torch.arange(500), labels]
    components = torch.cat([likelihood.T, torch.nn.functional.one_hot(labels, 10)], dim=1)

    def objective(x):
        return mixture_objective(x, components)

    start = torch.full((members + 10,), 1 / (members + 10), dtype=torch.float64)
    lower = torch.zeros_like(start)
    ours, reference = objective(minimise(objective, start, lower))[0], as_scipy(objective, start, lower)
    assert ours <= reference + 1e-9
