"""Test the objectives of ensembles: values and gradients against autograd, and the minimum that is found."""

from __future__ import annotations

import math

import pytest
import torch
from test_ensembles import real_logits

from ztw.exits.objectives import GeometricObjective, minimise, mixture_objective


def test_the_geometric_objective_has_the_derivatives_of_the_loss():
    logits, labels = real_logits(300, 3, 4)
    log_probs = logits.log_softmax(-1)
    x = torch.randn(7, generator=torch.Generator().manual_seed(1)).double()

    def loss(x):
        total = (x[:3].view(-1, 1, 1) * log_probs.double()).mean(0) + x[3:]
        return torch.nn.functional.cross_entropy(total, labels)

    value, gradient = GeometricObjective(log_probs, labels)(x)
    assert value == pytest.approx(loss(x).item())
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(loss, x))


def test_the_mixture_objective_has_the_derivatives_of_the_likelihood():
    generator = torch.Generator().manual_seed(1)
    components = torch.rand(50, 4, generator=generator, dtype=torch.float64)
    x = torch.rand(4, generator=generator, dtype=torch.float64)

    def loss(x):
        return x.sum() - 1 - (components @ x).log().mean()

    value, gradient = mixture_objective(x, components)
    assert value == pytest.approx(loss(x).item())
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(loss, x))


def test_a_mixture_that_gives_a_label_nothing_is_infinitely_bad():
    components = torch.tensor([[0.5, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert mixture_objective(torch.tensor([1.0, 0.0]).double(), components)[0] == math.inf


def test_a_bound_is_respected():
    # (x - 1)^2 + (y + 2)^2 with y >= 0 has its minimum at (1, 0)
    def objective(x):
        d = x - torch.tensor([1.0, -2.0], dtype=torch.float64)
        return float((d**2).sum()), 2 * d

    lower = torch.tensor([-torch.inf, 0.0], dtype=torch.float64)
    found = minimise(objective, torch.tensor([5.0, 5.0], dtype=torch.float64), lower)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)


def slope(objective, x, lower):
    """Return the slope of the steepest descent within the bounds, which is 0 at the minimum of a convex function."""
    _, gradient = objective(x)
    return float(torch.where((x > lower + 1e-9) | (gradient < 0), gradient, 0).abs().max())


@pytest.mark.parametrize("members", [1, 5])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 10.0])
def test_the_minimum_of_the_geometric_ensemble_is_found(members, sharpness):
    logits, labels = real_logits(500)
    objective = GeometricObjective((sharpness * logits[:members]).log_softmax(-1), labels)
    start = torch.cat([torch.ones(members), torch.zeros(10)]).double()
    lower = torch.cat([torch.zeros(members), torch.full((10,), -torch.inf)]).double()
    assert slope(objective, minimise(objective, start, lower), lower) < 1e-4
    assert slope(objective, start, lower) > 1e-2


@pytest.mark.parametrize("members", [1, 5])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 10.0])
def test_the_minimum_of_the_mixture_is_found(members, sharpness):
    logits, labels = real_logits(500)
    likelihood = (sharpness * logits[:members]).double().softmax(-1)[:, torch.arange(500), labels]
    components = torch.cat([likelihood.T, torch.nn.functional.one_hot(labels, 10)], dim=1)

    def objective(x):
        return mixture_objective(x, components)

    start = torch.full((members + 10,), 1 / (members + 10), dtype=torch.float64)
    lower = torch.zeros_like(start)
    assert slope(objective, minimise(objective, start, lower), lower) < 1e-4
