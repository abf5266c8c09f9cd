"""Test ensembles: combinations by hand, probabilities of 0, and fits compared with gradient descent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ztw
from ztw.exits.ensembles import ArithmeticEnsemble, GeometricEnsemble, UniformEnsemble


def cross_entropy(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy (K,) of every exit."""
    return -log_probs.gather(2, labels.expand(len(log_probs), -1)[..., None]).double().mean((1, 2))


def real_logits(samples: int = 2000, exits: int = 5, num_classes: int = 10) -> tuple[Tensor, Tensor]:
    """Return logits whose accuracy grows from exit to exit, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (samples,), generator=generator)
    signal = torch.nn.functional.one_hot(labels, num_classes).float()
    noise = torch.randn(exits, samples, num_classes, generator=generator)
    strength = torch.linspace(0.5, 2.0, exits).view(-1, 1, 1)
    return 2 * (strength * signal + noise), labels


def test_geometric_combination_by_hand():
    ensemble = GeometricEnsemble(2, 2)
    ensemble.weight[1] = torch.tensor([2.0, 4.0])
    ensemble.bias[1] = torch.tensor([0.5, 0.0])
    log_probs = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]]).log()
    # mean of 2 log .8 and 4 log .4, plus .5; mean of 2 log .2 and 4 log .6
    first = (2 * math.log(0.8) + 4 * math.log(0.4)) / 2 + 0.5
    second = (2 * math.log(0.2) + 4 * math.log(0.6)) / 2
    expected = math.exp(first) / (math.exp(first) + math.exp(second))
    assert ensemble(log_probs)[1].exp()[0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_arithmetic_combination_by_hand():
    ensemble = ArithmeticEnsemble(2, 2)
    ensemble.weight[1] = torch.tensor([0.25, 0.5])
    ensemble.bias[1] = torch.tensor([0.25, 0.0])
    log_probs = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]]).log()
    assert ensemble(log_probs)[1].exp()[0].tolist() == pytest.approx([0.65, 0.35], abs=1e-6)


def test_uniform_is_the_mean_of_probabilities():
    log_probs = torch.tensor([[[0.8, 0.2]], [[0.4, 0.6]]]).log()
    assert UniformEnsemble(2, 2)(log_probs)[1].exp()[0].tolist() == pytest.approx([0.6, 0.4])


def test_gradients_pass_through_a_geometric_ensemble():
    logits, labels = real_logits(20, 3, 4)
    ensemble = ztw.fit_ensemble(logits, labels)
    logits.requires_grad_()
    ensemble(logits)[2, :, 0].sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("include_final", [True, False])
@pytest.mark.parametrize("kind", ztw.list_ensembles())
def test_a_probability_of_zero_gives_no_nan(kind, include_final):
    logits = torch.tensor([[[0.0, -3e38], [-1e4, 1e4]], [[1e4, -1e4], [0.0, 0.0]]])
    labels = torch.tensor([1, 0])  # the first exit gives these labels probability 0
    fitted = ztw.fit_ensemble(logits, labels, kind, include_final)
    log_probs = fitted(logits)
    assert log_probs.isfinite().all()
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 2))


@pytest.mark.parametrize("include_final", [True, False])
@pytest.mark.parametrize("kind", ztw.list_ensembles())
def test_exit_by_exit_equals_all_exits_together(kind, include_final):
    """Also if some samples leave after an exit, and others join."""
    logits, labels = real_logits(60, 4, 3)
    ensemble = ztw.fit_ensemble(logits, labels, kind, include_final)
    expected = ensemble(logits)
    first, second = (ensemble.start(30, logits.device) for _ in range(2))
    for exit in range(2):
        for incremental, part in ((first, slice(30)), (second, slice(30, 60))):
            found = incremental.append(exit, logits[exit, part]).log_softmax(-1)
            torch.testing.assert_close(found, expected[exit, part])
    first.select(torch.arange(0, 30, 2))
    first.join([second])
    rows = torch.cat([torch.arange(0, 30, 2), torch.arange(30, 60)])
    for exit in range(2, 4):
        found = first.append(exit, logits[exit, rows]).log_softmax(-1)
        torch.testing.assert_close(found, expected[exit, rows])


class Median(ztw.Ensemble):
    """The median of the members per class, which is not a sum."""

    def combine(self, log_probs: Tensor) -> Tensor:
        return log_probs.median(0).values


@pytest.mark.parametrize("include_final", [True, False])
def test_an_ensemble_that_is_not_linear(include_final):
    """The third exit is computed by hand. Exit by exit gives the same, also if samples leave or join."""
    logits, labels = real_logits(60, 3, 4)
    ensemble = Median(3, 4, include_final)
    ensemble.fit(logits, labels)
    expected = ensemble(logits)
    by_hand = logits.log_softmax(-1).sort(0).values[1].log_softmax(-1)
    torch.testing.assert_close(expected[2], by_hand if include_final else logits[2].log_softmax(-1))
    torch.testing.assert_close(expected[0], logits[0].log_softmax(-1))
    first, second = (ensemble.start(30, logits.device) for _ in range(2))
    for incremental, part in ((first, slice(30)), (second, slice(30, 60))):
        found = incremental.append(0, logits[0, part]).log_softmax(-1)
        torch.testing.assert_close(found, expected[0, part])
    first.select(torch.arange(0, 30, 2))
    first.join([second])
    rows = torch.cat([torch.arange(0, 30, 2), torch.arange(30, 60)])
    for exit in (1, 2):
        found = first.append(exit, logits[exit, rows]).log_softmax(-1)
        torch.testing.assert_close(found, expected[exit, rows])


@pytest.mark.parametrize("kind", ztw.list_ensembles())
def test_combine_of_a_linear_ensemble_equals_its_forward(kind):
    logits, labels = real_logits(60, 4, 3)
    ensemble = ztw.fit_ensemble(logits, labels, kind)
    log_probs = logits.log_softmax(-1)
    for exit, expected in enumerate(ensemble(logits)):
        found = ensemble.combine(log_probs[: exit + 1]).log_softmax(-1)
        torch.testing.assert_close(found, expected)


def adam(ensemble_of, parameters: list[Tensor], labels: Tensor, steps: int = 501) -> float:
    """Fit one exit by Adam, as in the released recipe, on full batches; return the last loss."""
    optimizer = torch.optim.Adam(parameters, lr=5e-2)
    for _ in range(steps):
        loss = torch.nn.functional.nll_loss(ensemble_of(*parameters), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_geometric_fit_is_not_worse_than_adam():
    logits, labels = real_logits()
    fitted = ztw.fit_ensemble(logits, labels, "geometric")
    losses = cross_entropy(fitted(logits), labels)
    log_probs = logits.log_softmax(-1)
    for exit in (0, 2, 4):
        w = torch.zeros(exit + 1, requires_grad=True)
        b = torch.zeros(10, requires_grad=True)

        def q(w, b, exit=exit):
            mean = (w.exp().view(-1, 1, 1) * log_probs[: exit + 1]).mean(0)
            return (mean + b).log_softmax(-1)

        assert losses[exit] <= adam(q, [w, b], labels) + 1e-6


def test_arithmetic_fit_is_not_worse_than_adam():
    logits, labels = real_logits()
    fitted = ztw.fit_ensemble(logits, labels, "arithmetic")
    losses = cross_entropy(fitted(logits), labels)
    probs = logits.softmax(-1)
    for exit in (0, 2, 4):
        w = torch.zeros(exit + 1, requires_grad=True)
        b = torch.full((10,), -3.0, requires_grad=True)

        def q(w, b, exit=exit):
            total = (w.exp().view(-1, 1, 1) * probs[: exit + 1]).sum(0) + b.exp()
            return (total / total.sum(-1, keepdim=True)).log()

        assert losses[exit] <= adam(q, [w, b], labels) + 1e-6


def test_geometric_fit_is_at_a_minimum():
    logits, labels = real_logits(samples=500)
    fitted = ztw.fit_ensemble(logits, labels, "geometric")
    best = cross_entropy(fitted(logits), labels)[3]
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        moved = GeometricEnsemble(5, 10)
        moved.load_state_dict(fitted.state_dict())
        moved.weight[3, :4] = (moved.weight[3, :4] + 0.05 * torch.randn(4, generator=generator)).clamp(min=0)
        moved.bias[3] += 0.05 * torch.randn(10, generator=generator)
        assert cross_entropy(moved(logits), labels)[3] >= best - 1e-7


def test_ensembles_use_only_earlier_exits():
    logits, labels = real_logits(samples=300)
    for kind in ztw.list_ensembles():
        changed = logits.clone()
        changed[3:] = 0
        before, after = (ztw.fit_ensemble(x, labels, kind)(x) for x in (logits, changed))
        torch.testing.assert_close(before[:3], after[:3])


@pytest.mark.parametrize("kind", ztw.list_ensembles())
def test_the_final_exit_can_predict_alone(kind):
    logits, labels = real_logits(samples=300)
    fitted = ztw.fit_ensemble(logits, labels, kind, include_final=False)
    torch.testing.assert_close(fitted(logits)[-1], logits[-1].log_softmax(-1))
    assert fitted.macs(4) == 0
    assert fitted.macs(3) > 0


def test_the_fit_of_separable_labels_ends():
    labels = torch.arange(10).repeat(20)
    logits = 5 * torch.nn.functional.one_hot(labels, 10).float().expand(3, -1, -1)
    fitted = ztw.fit_ensemble(logits, labels)
    assert cross_entropy(fitted(logits), labels).max() < 1e-3


def test_nan_is_refused():
    logits, labels = real_logits(samples=50)
    ensemble = ztw.fit_ensemble(logits, labels)
    logits[4, 3, 2] = math.nan
    with pytest.raises(ztw.ZtwError, match="logits: 1 values are NaN"):
        ensemble(logits)  # a NaN of the last exit would reach the first exit: NaN * 0 is NaN


def test_unknown_kind_and_wrong_size_are_refused():
    logits, labels = real_logits(samples=50)
    with pytest.raises(ztw.ZtwError, match="unknown ensemble 'x'; known: geometric, arithmetic, uniform"):
        ztw.fit_ensemble(logits, labels, "x")
    with pytest.raises(ztw.ZtwError, match=r"shape \(4, 50, 10\), .* 5 exits and 10 classes"):
        ztw.fit_ensemble(logits, labels)(logits[:4])


def test_an_ensemble_that_lacks_a_part_is_refused():
    class Incomplete(ztw.LinearEnsemble):
        def member(self, logits):
            return logits

    with pytest.raises(TypeError, match="abstract class Incomplete"):
        Incomplete(2, 3)  # type: ignore[abstract]
