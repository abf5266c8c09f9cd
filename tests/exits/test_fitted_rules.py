"""Test fitted rules against hand-computed values: their parameters, scores, texts and files."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch

import ztw
from ztw import testing
from ztw.catalogue.parts import has_threshold, is_fitted
from ztw.exits.fitted_base import unfitted
from ztw.exits.fitted_rules import reliability_bins
from ztw.exits.rules import describe_rule, exit_scores, rule_from, rule_name
from ztw.exits.temperatures import fit_temperatures
from ztw.exits.thresholds import candidates

COST = torch.tensor([1.0, 2.0], dtype=torch.float64)


def two_classes(confidences):
    """Return logits (N, 2) that predict class 0 with these confidences."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return (torch.stack([p, 1 - p], -1)).log().float()


# exit 1: 20 samples at 0.6, 10 of them correct, and 20 at 0.9, 18 of them correct; exit 2: always 0.8
LABELS = torch.cat([torch.tensor([0, 1]).repeat_interleave(10), torch.tensor([0] * 18 + [1] * 2)])
LOGITS = torch.stack([two_classes([0.6] * 20 + [0.9] * 20), two_classes([0.8] * 40)])


def test_bins_of_equal_size_by_hand():
    found = reliability_bins(LOGITS[0].softmax(-1).amax(-1), LABELS == 0)
    assert [(right, count) for _, right, count in found] == [(10, 20), (18, 20)]
    assert [middle for middle, _, _ in found] == pytest.approx([0.6, 0.9])


def test_bins_are_pooled_until_the_accuracy_rises():
    confidence = torch.linspace(0.5, 0.99, 80)
    correct = torch.zeros(80, dtype=torch.bool)
    correct[:12] = correct[20:30] = correct[40:54] = correct[60:74] = True  # 12, 10, 14 and 14 of 20
    found = reliability_bins(confidence, correct)
    assert [(right, count) for _, right, count in found] == [(22, 40), (28, 40)]
    # the lower median of the sorted samples
    assert [middle for middle, _, _ in found] == [float(confidence[19]), float(confidence[59])]


def test_equal_confidences_share_a_bin():
    confidence = torch.tensor([0.5] * 10 + [0.7] * 45 + [0.9] * 5)
    found = reliability_bins(confidence, torch.arange(60) >= 30)
    assert [(count, round(middle, 2)) for middle, _, count in found] == [(55, 0.7), (5, 0.9)]


def test_pcee_scores_by_hand():
    kind: Any = ztw.fit_rule(LOGITS, LABELS, "pcee")
    # one more sample per bin, half of it correct; the ends are confidence 0 and 1
    confidences, accuracies = torch.tensor(kind.fitted[0]).view(2, -1).tolist()
    assert confidences == pytest.approx([0, 0.6, 0.9, 1])
    assert accuracies == pytest.approx([10 / 21, 10.5 / 21, 18.5 / 21, 19 / 21])
    assert torch.tensor(kind.fitted[1]).view(2, -1)[1].tolist() == pytest.approx(
        [28 / 41, 28.5 / 41, 29 / 41]
    )
    new = torch.stack([two_classes([0.6, 0.7, 0.95]), two_classes([0.8, 0.9, 0.8])])
    expected = [
        [10.5 / 21, (10.5 + 8 / 3) / 21, 18.75 / 21],
        [28.5 / 41, 28.75 / 41, 28.5 / 41],
    ]
    torch.testing.assert_close(exit_scores(new, kind), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def test_a_threshold_is_an_accuracy():
    """An overconfident exit, 99 % confident and 70 % correct, keeps its samples at a threshold of 0.8."""
    logits = torch.stack([two_classes([0.99] * 40), two_classes([0.9] * 40)])
    labels = torch.tensor([0] * 28 + [1] * 12)
    kind: Any = ztw.fit_rule(logits, labels, "pcee")
    assert ztw.simulate_exits(logits, kind(0.8))[0].tolist() == [1] * 40
    assert ztw.simulate_exits(logits, kind(0.65))[0].tolist() == [0] * 40
    assert ztw.simulate_exits(logits, ztw.MaxSoftmax(0.8))[0].tolist() == [0] * 40


def test_pcee_rises_strictly_with_the_confidence_up_to_1(logits, labels):
    kind = ztw.fit_rule(logits, labels, "pcee")
    scores = kind.score_at(2, two_classes(torch.linspace(0.5, 1, 200).tolist()), ())[0]
    assert scores.diff().gt(0).all()
    certain = torch.tensor([[[200.0, 0.0]] * 30])  # a confidence of 1 in float32
    assert exit_scores(certain, ztw.fit_rule(certain, torch.arange(30) % 2, "pcee")).tolist() == [
        [pytest.approx(0.5)] * 30
    ]


def test_temperature_is_the_fitted_temperature_of_each_exit(logits, labels):
    kind: Any = ztw.fit_rule(logits, labels, "temperature")
    temperatures = fit_temperatures(logits, labels)
    assert kind.fitted == tuple((t,) for t in temperatures.tolist())
    expected = (logits / temperatures[:, None, None]).softmax(-1).amax(-1)
    torch.testing.assert_close(exit_scores(logits, kind).float(), expected.float())


def test_a_small_temperature_gives_finite_scores():
    logits = torch.tensor([[[1e37, 0.0], [0.0, 1e37]]])  # separates the classes, so the temperature is 1e-3
    assert exit_scores(logits, ztw.fit_rule(logits, torch.tensor([0, 1]), "temperature")).tolist() == [[1, 1]]


def test_rules_without_parameters_need_no_fit(logits, labels):
    assert ztw.fit_rule(logits, labels, "entropy") is ztw.Entropy
    fitted = ztw.fit_rule(logits, labels, "pcee")
    assert ztw.fit_rule(logits[:2], labels, fitted) is fitted, "a fitted class keeps its parameters"


def test_equal_parameters_give_the_same_class(logits, labels):
    kind: Any = ztw.fit_rule(logits, labels, ztw.Pcee)
    assert kind(0.9) == kind(0.9) != kind(0.8)
    assert repr(kind([0.5, 0.25, 1])) == "Pcee(threshold=(0.5, 0.25, 1.0))"
    assert unfitted(kind) is ztw.Pcee
    assert rule_name(kind) == "pcee"
    assert ztw.fit_rule(logits, labels, "pcee") is kind


@pytest.mark.parametrize("name", ["pcee", "temperature"])
@pytest.mark.parametrize("threshold", [0.9, [0.1, 0.2, 0.3]])
def test_a_rule_is_copied_pickled_and_written_exactly(logits, labels, name, threshold):
    kind: Any = ztw.fit_rule(logits, labels, name)
    rule = kind(threshold)
    for again in (
        rule_from(json.loads(json.dumps(describe_rule(rule)))),
        pickle.loads(pickle.dumps(rule)),
        copy.deepcopy(rule),
    ):
        assert again == rule
        assert type(again) is type(rule)


def test_a_rule_is_saved_and_loaded(tmp_path, labels):
    network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False).eval()
    images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    point = ztw.choose_threshold(
        network, (images, labels[:40]), allowed_loss=0.1, rule="pcee", progress=False
    )
    ztw.save(network, tmp_path, rule=point.rule, progress=False)
    loaded, rule = ztw.load(tmp_path)
    assert rule == point.rule
    expected = network.infer(images, point.rule).exit_index
    assert torch.equal(loaded.infer(images, rule).exit_index, expected)


def test_what_is_refused(logits, labels, cost):
    kind: Any = ztw.fit_rule(logits, labels, "pcee")
    not_fitted = r"^Pcee: is not fitted; kind = ztw.fit_rule\(logits, labels, rule\), then kind\(threshold\)$"
    other = r"^Pcee: fitted for 4 exits, must be for 3$"
    described = describe_rule(kind(0.5))
    cases: list[tuple[str, Any]] = [
        (not_fitted, lambda: ztw.Pcee(0.9)),
        (not_fitted, lambda: ztw.sweep(logits, labels, cost, "pcee")),
        (not_fitted, lambda: ztw.simulate_exits(logits, "pcee 0.9")),
        (not_fitted, lambda: candidates("shared", logits, labels, cost, "pcee")),
        (other, lambda: ztw.sweep(logits[:3], labels, cost[:3], kind)),
        (other, lambda: ztw.simulate_exits(logits[:3], kind(0.9))),
        ("^threshold nan: must be", lambda: kind(float("nan"))),
        ("^threshold 90: must be at most 1 for Pcee", lambda: kind(90)),
        ("^pcee: the key 'fitted' is missing$", lambda: rule_from({"rule": "pcee", "threshold": 0.9})),
        ("a list of finite numbers per exit", lambda: rule_from({**described, "fitted": [[]]})),
        ("a list of finite numbers per exit", lambda: rule_from({**described, "fitted": [0.5]})),
        ("a list of finite numbers per exit", lambda: rule_from({**described, "fitted": [["a"]]})),
        (r"labels: shape \(9,\)", lambda: ztw.fit_rule(logits, labels[:9], "pcee")),
        (r"use score_at\(exit, logits, state\)", lambda: kind.score(logits[0], ())),
        ("unknown exit rule 'nope'", lambda: ztw.fit_rule(logits, labels, "nope")),
    ]
    for message, call in cases:
        with pytest.raises(ztw.ZtwError, match=message):
            call()


def test_infer_refuses_a_rule_of_another_number_of_exits(logits, labels):
    network = ztw.build_network(ztw.build_backbone("resnet8"), head="pool", progress=False).eval()
    kind: Any = ztw.fit_rule(logits[:3], labels, "temperature")
    with pytest.raises(ztw.ZtwError, match="Temperature: fitted for 3 exits, must be for 4"):
        network.infer(torch.zeros(2, 3, 32, 32), kind(0.9))


class Trusted(ztw.FittedRule):
    """A user's rule: the largest probability times the exit's accuracy."""

    top = 1.0

    @staticmethod
    def fit_exit(logits, labels):
        return [float((logits.argmax(-1) == labels).double().mean())]

    @staticmethod
    def fitted_score(logits, state, fitted):
        return logits.softmax(-1).amax(-1) * fitted[0], ()


def test_a_users_fitted_rule_keeps_the_contract_and_its_score_is_known(logits, labels):
    ztw.register("rule", "trusted", Trusted)
    testing.check_rule("trusted")
    kind = ztw.fit_rule(logits, labels, "trusted")
    accuracy = ztw.exit_accuracy(logits, labels)
    expected = logits.softmax(-1).amax(-1).double() * accuracy[:, None]
    torch.testing.assert_close(exit_scores(logits, kind), expected, atol=1e-6, rtol=0)
    assert is_fitted("trusted")
    assert has_threshold("trusted")


def test_the_contract_finds_faults_of_fitted_rules():
    class Moody(Trusted):
        fits = 0

        @staticmethod
        def fit_exit(logits, labels):
            Moody.fits += 1
            return [1 / Moody.fits]

    class Nothing(Trusted):
        @staticmethod
        def fit_exit(logits, labels):
            return []

    for part, message in ((Moody, "two fits give other parameters"), (Nothing, "finite numbers per exit")):
        ztw.register("rule", part.__name__, part)
        with pytest.raises(ztw.ZtwError, match=f"^rule '{part.__name__}': .*{message}"):
            testing.check_rule(part.__name__)
    with pytest.raises(ztw.ZtwError, match="rule 'half': Half lacks fit_exit"):
        ztw.register(
            "rule",
            "half",
            type("Half", (ztw.FittedRule,), {"top": 1.0, "fitted_score": Trusted.fitted_score}),
        )
