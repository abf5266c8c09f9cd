"""Time the fit of ensembles to convergence, against the released recipe's 501 epochs of Adam."""

from __future__ import annotations

import pytest
import torch
from common import random_logits
from torch import Tensor

import ztw

SIZES = {10: (28, 50_000, 10), 200: (15, 50_000, 200)}
ADAM_EPOCHS = 501
TIMED_EPOCHS = 1


def adam(logits: Tensor, labels: Tensor, epochs: int) -> list[float]:
    """Fit all exits together by a plain loop with Adam (5e-4, batch 512); return the mean loss of every exit."""
    log_probs = logits.log_softmax(-1)
    exits, _, num_classes = logits.shape
    weight = torch.zeros(exits, exits, requires_grad=True)
    bias = torch.zeros(exits, num_classes, requires_grad=True)
    mask = torch.ones(exits, exits).tril() / torch.arange(1, exits + 1)[:, None]
    optimizer = torch.optim.Adam([weight, bias], 5e-4)

    def losses(part: Tensor, labels: Tensor) -> Tensor:
        scores = torch.einsum("mj,jnc->mnc", weight.exp() * mask, part) + bias[:, None]
        right = scores.log_softmax(-1).gather(2, labels.expand(exits, -1)[..., None])
        return -right.mean((1, 2))

    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(512):
            optimizer.zero_grad()
            losses(log_probs[:, rows], labels[rows]).sum().backward()
            optimizer.step()
    with torch.no_grad():
        return losses(log_probs[:, :10_000], labels[:10_000]).tolist()


@pytest.fixture(params=list(SIZES), ids=lambda num_classes: f"{num_classes}-classes", scope="module")
def data(request):
    return random_logits(*SIZES[request.param])


def describe(benchmark, data, what: str, **facts) -> None:
    benchmark.group = "ensembles {1} samples x {0} exits x {2} classes".format(*data[0].shape)
    benchmark.extra_info.update(what=what, **facts)


def test_adam(benchmark, data):
    scale = ADAM_EPOCHS / TIMED_EPOCHS
    describe(benchmark, data, f"reference: Adam, {ADAM_EPOCHS} epochs", scale=scale, reference=True)
    benchmark.pedantic(lambda: adam(*data, TIMED_EPOCHS), rounds=1)


@pytest.mark.parametrize("kind", ["geometric", "arithmetic"])
def test_fit(benchmark, data, kind):
    describe(benchmark, data, f"ztw.fit_ensemble {kind}, to convergence")
    benchmark.pedantic(lambda: ztw.fit_ensemble(*data, kind), rounds=1)
