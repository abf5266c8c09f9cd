"""What ensembles minimise: values and derivatives against autograd's."""

from __future__ import annotations

import math

import pytest
import torch
from test_ensembles import real_logits

from ztw.exits.objectives import GeometricObjective, mixture_objective


def test_the_geometric_objective_has_the_derivatives_of_the_loss():
    logits, labels = real_logits(300, 3, 4)
    log_probs = logits.log_softmax(-1)
    x = torch.randn(7, generator=torch.Generator().manual_seed(1)).double()

    def loss(x):
        total = (x[:3].view(-1, 1, 1) * log_probs.double()).mean(0) + x[3:]
        return torch.nn.functional.cross_entropy(total, labels)

    value, gradient, hessian = GeometricObjective(log_probs, labels)(x)
    assert value == pytest.approx(loss(x).item())
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(loss, x))
    torch.testing.assert_close(hessian(), torch.autograd.functional.hessian(loss, x), atol=1e-5, rtol=1e-5)


def test_the_mixture_objective_has_the_derivatives_of_the_likelihood():
    generator = torch.Generator().manual_seed(1)
    components = torch.rand(50, 4, generator=generator, dtype=torch.float64)
    x = torch.rand(4, generator=generator, dtype=torch.float64)

    def loss(x):
        return x.sum() - 1 - (components @ x).log().mean()

    value, gradient, hessian = mixture_objective(x, components)
    assert value == pytest.approx(loss(x).item())
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(loss, x))
    torch.testing.assert_close(hessian(), torch.autograd.functional.hessian(loss, x))


def test_a_mixture_that_gives_a_label_nothing_is_infinitely_bad():
    components = torch.tensor([[0.5, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert mixture_objective(torch.tensor([1.0, 0.0]).double(), components)[0] == math.inf
