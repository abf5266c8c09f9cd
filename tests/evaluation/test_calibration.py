"""Test calibration against hand-computed values, scikit-learn and a plain loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sklearn import metrics

import ztw
from ztw.evaluation.calibration import calibration, overthinking
from ztw.evaluation.metrics import exit_accuracy
from ztw.exits.temperatures import fit_temperatures

# Four samples of two classes: right at 0.9, wrong at 0.8, right at 0.7, wrong at 0.6.
PROBS = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1, 0])


def measure(name: str, logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Return one metric of one exit, logits (N, C)."""
    return calibration(logits[None], labels, bins=bins)[name].item()


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Fit the temperature of one exit, logits (N, C)."""
    return fit_temperatures(logits[None], labels).item()


def test_expected_calibration_error_by_hand():
    # two bins: all in (0.5, 1], confidence 0.75, accuracy 0.5
    assert measure("ece", PROBS.log(), LABELS, bins=2) == pytest.approx(0.25)
    # ten bins: each alone, |1 - .9|, |0 - .8|, |1 - .7|, |0 - .6|
    assert measure("ece", PROBS.log(), LABELS, bins=10) == pytest.approx(1.8 / 4)
    # four bins: 0.9 and 0.8 together (0.85 against 0.5), 0.7 and 0.6 together (0.65 against 0.5)
    assert measure("ece", PROBS.log(), LABELS, bins=4) == pytest.approx((0.35 + 0.15) / 2)


def test_a_bin_holds_its_upper_edge_and_the_first_holds_0():
    # confidence 0.5, right; 1, right; 1, wrong: 0.5 lies in (0, 0.5], so the gaps are 0.5 and 2 * 0.5
    logits = torch.tensor([[0.0, 0.0], [0.0, -1e38], [0.0, -1e38]])
    labels = torch.tensor([0, 0, 1])
    assert measure("ece", logits, labels, bins=2) == pytest.approx(1.5 / 3)
    # all in one bin: 2 right, confidences 2.5 in all
    assert measure("ece", logits, labels, bins=1) == pytest.approx(0.5 / 3)
    # probability 1 of the right class and 0 of the other: no error
    assert measure("classwise_ece", logits[1:], torch.tensor([0, 0]), bins=2) == 0


def test_classwise_calibration_error_by_hand():
    # one bin: both classes have half of the labels; mean probabilities 0.6 and 0.4
    assert measure("classwise_ece", PROBS.log(), LABELS, bins=1) == pytest.approx(0.1)
    # two bins: class 0 low (.3, .4; labels 0, 1): |.7 - 1| / 4, high (.9, .8; 1, 0): |1.7 - 1| / 4; class 1 alike
    assert measure("classwise_ece", PROBS.log(), LABELS, bins=2) == pytest.approx((0.3 + 0.7) / 4)


def test_brier_score_and_likelihood_by_hand():
    of_label = (0.9, 0.2, 0.7, 0.4)
    by_hand = sum(2 * (1 - p) ** 2 for p in of_label) / 4
    assert measure("brier", PROBS.log(), LABELS) == pytest.approx(by_hand)
    assert measure("nll", PROBS.log(), LABELS) == pytest.approx(-sum(map(math.log, of_label)) / 4)


def test_a_label_of_probability_0_has_a_finite_nll():
    logits, labels = torch.tensor([[0.0, -3e38], [0.0, -1e30]]), torch.tensor([1, 1])
    tiny = -math.log(torch.finfo(torch.float32).tiny)
    assert measure("nll", logits, labels) == pytest.approx(tiny)
    assert measure("brier", logits, labels) == pytest.approx(2)
    assert measure("ece", logits, labels) == pytest.approx(1)


def test_auroc_by_hand():
    # right: 0.9 and 0.7; of the four pairs only (0.7, 0.8) is in the wrong order
    assert measure("auroc", PROBS.log(), LABELS) == 0.75
    # 0.9 right, 0.9 wrong, 0.5 wrong: a tie counts half
    tied = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.5, 0.5]]).log()
    assert measure("auroc", tied, torch.tensor([0, 1, 1])) == 0.75
    for labels in (PROBS.argmax(-1), PROBS.argmin(-1)):  # all right, all wrong
        assert math.isnan(measure("auroc", PROBS.log(), labels))


def test_overthinking_by_hand():
    # rows: exits, columns: samples, 1 = right; an earlier exit has samples 1 to 3 right
    right = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 0, 1], [0, 0, 0, 0, 1]])
    logits = torch.stack([right, 1 - right], dim=-1).float()
    assert overthinking(logits, torch.zeros(5).long()) == pytest.approx(3 / 5)
    assert overthinking(logits[2:], torch.zeros(5).long()) == 0


def test_temperature_by_hand():
    # three of four are right at margin 2: calibrated if sigmoid(2 / T) = 3/4, so T = 2 / log 3
    logits = torch.tensor([[2.0, 0.0]] * 4)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), rel=1e-9)


def test_temperature_at_its_bounds():
    right, wrong = torch.tensor([0, 1]), torch.tensor([1, 0])
    logits = torch.tensor([[3.0, 0.0], [-1.0, 4.0]])
    assert fit_temperature(logits, right) == pytest.approx(1e-3)
    assert fit_temperature(logits, wrong) == pytest.approx(1e3)
    assert fit_temperature(torch.ones(2, 2), right) == 1
    assert fit_temperature(torch.zeros(3, 1), torch.zeros(3).long()) == 1


@pytest.mark.parametrize("temperature", [0.02, 0.3, 1.0, 4.0, 60.0])
def test_a_known_scaling_is_found_again(temperature):
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    labels = truth.softmax(-1).multinomial(1, generator=generator).flatten()
    found = fit_temperature(truth * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    assert found == pytest.approx(temperature * fit_temperature(truth, labels), rel=1e-8)
    assert fit_temperature(truth * temperature / found, labels) == pytest.approx(1, abs=1e-8)
    # log-probabilities are as good as logits
    assert fit_temperature((truth * temperature).log_softmax(-1), labels) == pytest.approx(found, rel=1e-8)
    scaled = calibration(truth[None] * temperature, labels, torch.tensor([temperature]))
    assert scaled["ece_scaled"] < 0.01
    assert scaled["classwise_ece_scaled"] < 0.01


def test_the_temperature_minimises_the_cross_entropy(logits, labels):
    for exit in logits:
        best = fit_temperature(exit, labels)
        others = torch.logspace(-1, 2, 50, dtype=torch.float64).tolist()
        least = measure("nll", exit / best, labels)
        assert least <= min(measure("nll", exit.double() / other, labels) for other in others) + 1e-6


def test_metrics_equal_scikit_learn_s(logits, labels):
    probs = logits[0].double().softmax(-1).numpy()
    confidence, right = probs.max(-1), probs.argmax(-1) == labels.numpy()
    every = list(range(5))
    found = calibration(logits, labels)
    assert float(found["auroc"][0]) == pytest.approx(metrics.roc_auc_score(right, confidence))
    assert float(found["nll"][0]) == pytest.approx(metrics.log_loss(labels, probs, labels=every))
    one_against_rest = sum(metrics.brier_score_loss(labels == c, probs[:, c]) for c in every)
    assert float(found["brier"][0]) == pytest.approx(one_against_rest)


def test_auroc_with_ties_equals_scikit_learn_s():
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + torch.randint(9, (500,), generator=generator) / 18
    correct = torch.rand(500, generator=generator) < confidence
    logits = torch.stack([confidence, 1 - confidence], dim=1).log()  # the first of equal classes is predicted
    found = measure("auroc", logits, (~correct).long())
    assert found == pytest.approx(metrics.roc_auc_score(correct, confidence))


def plain_gap(scores: list[float], hits: list[float], bins: int) -> float:
    """Compute the gap by a plain loop over the bins."""
    total = 0.0
    for bin in range(bins):
        inside = [i for i, score in enumerate(scores) if bin / bins < score <= (bin + 1) / bins]
        if inside:
            total += abs(sum(hits[i] for i in inside) - sum(scores[i] for i in inside)) / len(scores)
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_errors_equal_the_plain_loop(bins, logits, labels):
    found = calibration(logits, labels, bins=bins)
    for k, probs in enumerate(logits.double().softmax(-1)):
        right = (probs.argmax(-1) == labels).double()
        ece = plain_gap(probs.amax(-1).tolist(), right.tolist(), bins)
        gaps = [plain_gap(probs[:, c].tolist(), (labels == c).double().tolist(), bins) for c in range(5)]
        assert float(found["ece"][k]) == pytest.approx(ece)
        assert float(found["classwise_ece"][k]) == pytest.approx(sum(gaps) / 5)


def test_one_bin_compares_accuracy_and_mean_confidence(logits, labels):
    found = calibration(logits, labels, bins=1)["ece"]
    confidence = logits.double().softmax(-1).amax(-1).mean(1)
    torch.testing.assert_close(found, (exit_accuracy(logits, labels) - confidence).abs())


def test_all_exits_together_equal_each_alone(logits, labels):
    temperatures = fit_temperatures(logits, labels)
    found = calibration(logits, labels, temperatures)
    changed = {"ece", "classwise_ece", "brier", "nll"}
    assert set(found) == {*changed, *(f"{name}_scaled" for name in changed), "auroc"}
    assert set(calibration(logits, labels)) == {*changed, "auroc"}
    for k, exit in enumerate(logits.double()):
        for name in (*changed, "auroc"):
            assert found[name][k].item() == pytest.approx(measure(name, exit, labels))
        for name in changed:
            scaled = measure(name, exit / temperatures[k], labels)
            assert found[f"{name}_scaled"][k].item() == pytest.approx(scaled)
    assert all(values.shape == (4,) and values.dtype == torch.float64 for values in found.values())
    assert temperatures.dtype == torch.float64
    assert temperatures.tolist() == [fit_temperature(exit, labels) for exit in logits]
    assert (found["nll_scaled"] <= found["nll"]).all()


def test_logits_and_log_probabilities_give_the_same_metrics(logits, labels):
    raw, normalised = calibration(logits, labels), calibration(logits.double().log_softmax(-1), labels)
    for name, values in raw.items():
        torch.testing.assert_close(values, normalised[name])


def test_one_exit_one_sample_one_class():
    found = calibration(torch.zeros(1, 1, 1), torch.zeros(1).long(), torch.ones(1))
    assert math.isnan(found.pop("auroc"))
    assert [float(value) for value in found.values()] == [0] * 8


def test_malformed_input_is_refused(logits, labels):
    cases: list[tuple[Callable, tuple, str]] = [
        (calibration, (logits[0], labels), r"shape \(200, 5\), must be \(exits, samples, classes\)"),
        (calibration, (logits, labels[:9]), r"labels: shape \(9,\)"),
        (calibration, (logits, labels + 4), "must lie in 0..4"),
        (calibration, (logits, labels.float()), "must be integers"),
        (calibration, (logits / 0, labels), r"values are \+inf, must be finite"),
        (calibration, (logits * math.nan, labels), "4000 values are NaN"),
        (calibration, (logits, labels, torch.ones(3)), r"temperatures: shape \(3,\), must be \(4,\)"),
        (calibration, (logits, labels, torch.zeros(4)), "must be positive and finite"),
        (calibration, (logits, labels, None, 0), "bins 0: must be at least 1"),
        (fit_temperatures, (logits[0], labels), r"shape \(200, 5\)"),
        (fit_temperatures, (logits, labels.float()), "must be integers"),
        (
            fit_temperatures,
            (logits.masked_fill(logits < 99, -torch.inf), labels),
            "4000 values are -inf",
        ),
        (overthinking, (logits[0], labels), r"shape \(200, 5\)"),
    ]
    for function, arguments, message in cases:
        with pytest.raises(ztw.ZtwError, match=message):
            function(*arguments)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1e-3), (-1.0, 1e3), (0.0, 1.0)])
def test_bounds_of_a_temperature_hold_for_many_samples_too(factor, expected):
    """With many samples, the search starts on a few: always right, always wrong, and uninformative logits."""
    labels = torch.arange(10_000) % 4
    logits = factor * torch.nn.functional.one_hot(labels, 4).double()
    assert fit_temperature(logits, labels) == expected


def test_a_misleading_first_search_costs_no_precision():
    # every fourth sample, on which the search starts, is right; of all samples three in four, as in
    # `test_temperature_by_hand`
    logits, labels = torch.tensor([[2.0, 0.0]] * 10_000), (torch.arange(10_000) % 4 == 1).long()
    assert fit_temperature(logits, labels) == pytest.approx(2 / math.log(3), rel=1e-9)
