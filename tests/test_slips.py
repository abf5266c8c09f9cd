"""Test mistakes of callers: one-line errors, while clear input of other types is accepted."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ztw
from ztw.exits.rules import as_rule, describe_rule
from ztw.exits.thresholds import candidates
from ztw.testing import draw

api: Any = ztw  # for calls with wrong types
LOGITS, LABELS = draw(samples=60)
COST = torch.tensor([1.0, 2.0, 3.0, 4.0])
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    stages = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return api.build_network(api.Backbone("small", stages, classifier, (3, 8, 8)), head="pool").eval()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("max_softmax 0.9", api.MaxSoftmax(0.9)),
        ("entropy 0.1 0.2 0.3", api.Entropy((0.1, 0.2, 0.3))),
        ("patience 2", api.Patience(2)),
    ],
)
def test_a_text_with_a_parameter_is_a_rule(network, given, expected):
    assert as_rule(given) == expected
    assert network.infer(IMAGES, given).exit_index.equal(network.infer(IMAGES, expected).exit_index)
    assert api.simulate_exits(LOGITS, given)[0].equal(api.simulate_exits(LOGITS, expected)[0])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (0.5, r"rule 0\.5: must be an exit rule.* ztw\.MaxSoftmax\(0\.9\) or 'max_softmax 0\.9'"),
        (None, "rule None: must be an exit rule"),
        (api.MaxSoftmax, r"rule MaxSoftmax \(a class\): must be an exit rule"),
        (nn.Linear(1, 1), "rule Linear: must be an exit rule"),
        ("", "rule '': must be an exit rule"),
        ("max_softmax", r"rule 'max_softmax': .*parameter.* 'max_softmax 0\.9'"),
        ("softmax 0.9", "unknown exit rule 'softmax'; known: max_softmax, "),
        ("max_softmax high", "rule 'max_softmax high': .*numbers"),
        ("patience 0.5", r"patience 0\.5: must be a whole number"),
    ],
)
def test_wrong_rules(network, rule, message):
    for call in (lambda: network.infer(IMAGES, rule), lambda: api.simulate_exits(LOGITS, rule)):
        with pytest.raises(api.ZtwError, match=message):
            call()


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
def test_numbers_of_numpy_and_torch_are_numbers(number):
    assert api.MaxSoftmax(number) == api.MaxSoftmax(0.5)
    assert describe_rule(api.MaxSoftmax(number)) == {"rule": "max_softmax", "threshold": 0.5}
    curve = api.sweep(LOGITS, LABELS, COST, "max_softmax")
    assert api.accuracy_at_budget(curve, [number.item()], 4.0) == api.accuracy_at_budget(curve, [0.5], 4.0)
    assert api.Patience(np.int64(2)) == api.Patience(2)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: api.MaxSoftmax(90), "threshold 90: must be at most 1 for MaxSoftmax"),
        (lambda: api.MaxSoftmax((0.5, 50)), "must be at most 1"),
        (lambda: api.Entropy(-3), "threshold -3: must be at least 0 for Entropy"),
        (lambda: api.MaxSoftmax("0.9"), "threshold '0.9': "),
        (lambda: api.MaxSoftmax(None), "threshold None: "),
        (lambda: api.MaxSoftmax(True), "threshold True: must be a number"),
        (lambda: api.MaxSoftmax(float("nan")), "threshold nan: must be a number"),
        (lambda: api.Patience("2"), "patience '2': must be a whole number"),
        (lambda: api.Patience(2.5), r"patience 2\.5: must be a whole number"),
        (lambda: api.Patience(float("inf")), "patience inf: must be a whole number"),
        (
            lambda: api.sweep(LOGITS, LABELS, COST, api.MaxSoftmax(0.9), [0.5]),
            "has a parameter already",
        ),
    ],
)
def test_impossible_parameters(rule, message):
    with pytest.raises(api.ZtwError, match=message):
        rule()


def test_a_rule_with_a_parameter_is_swept_at_this_parameter_only():
    for rule in (api.MaxSoftmax(0.9), "max_softmax 0.9"):
        expected = api.sweep(LOGITS, LABELS, COST, "max_softmax", [0.9])
        found = api.sweep(LOGITS, LABELS, COST, rule)
        assert all(
            torch.equal(one, other) for one, other in zip(astuple(found), astuple(expected), strict=True)
        )
    per_exit = api.sweep(LOGITS, LABELS, COST, api.Entropy((0.3, 0.2, 0.1)))
    assert per_exit.cost.equal(api.sweep(LOGITS, LABELS, COST, api.Entropy, [[0.3, 0.2, 0.1]]).cost)
    assert api.sweep(LOGITS, LABELS, COST, api.Patience(2)).parameter.tolist() == [2.0]


def test_thresholds_are_chosen_for_a_name_or_a_class(network):
    held_out = (network(IMAGES).detach(), LABELS[:6])
    named, of_class = (
        api.choose_threshold(network, held_out, budget="max", rule=rule, progress=False)
        for rule in ("entropy", api.Entropy)
    )
    assert named == of_class
    for rule in (api.Entropy(0.1), "entropy 0.1"):
        with pytest.raises(api.ZtwError, match="has a parameter already"):
            api.choose_threshold(network, held_out, budget="max", rule=rule)


def test_thresholds_that_no_or_every_score_passes_are_accepted(network):
    assert set(network.infer(IMAGES, api.MaxSoftmax(float("inf"))).exit_index.tolist()) == {3}
    assert set(network.infer(IMAGES, api.MaxSoftmax(-1)).exit_index.tolist()) == {0}


@pytest.mark.parametrize("budget", [50, 25.0, 100])
def test_a_percentage_is_not_a_budget(network, budget):
    message = f"budget {budget}: must be a fraction of the backbone's cost; {budget:g} % is {budget / 100:g}"
    with pytest.raises(api.ZtwError, match=message):
        api.choose_threshold(network, (network(IMAGES).detach(), LABELS[:6]), budget=budget, progress=False)
    curve = api.sweep(LOGITS, LABELS, COST, "max_softmax")
    with pytest.raises(api.ZtwError, match=message):
        api.accuracy_at_budget(curve, [0.5, budget], 4.0)


def test_numpy_arrays_are_taken_wherever_tensors_are(network):
    logits, labels, cost = LOGITS.numpy(), LABELS.numpy(), COST.numpy()
    assert api.sweep(logits, labels, cost, "entropy").accuracy.equal(
        api.sweep(LOGITS, LABELS, COST, "entropy").accuracy
    )
    assert api.simulate_exits(logits, "max_softmax 0.5")[0].equal(
        api.simulate_exits(LOGITS, "max_softmax 0.5")[0]
    )
    assert api.exit_accuracy(logits, labels).equal(api.exit_accuracy(LOGITS, LABELS))
    assert api.hindsight_improvability(logits, labels).equal(api.hindsight_improvability(LOGITS, LABELS))
    ensemble = api.fit_ensemble(logits, labels, "uniform")
    assert ensemble(logits).equal(ensemble(LOGITS))
    right = LOGITS.argmax(-1) == LABELS
    expected = api.paired_difference(right[0], right[3])
    assert api.paired_difference(right[0].numpy(), right[3].numpy()) == expected
    for choice in api.list_thresholds():
        found = candidates(choice, logits, labels, cost, "max_softmax")  # type: ignore[arg-type]
        assert found.thresholds.equal(candidates(choice, LOGITS, LABELS, COST, "max_softmax").thresholds)
    held_out = (network(IMAGES).detach().numpy(), labels[:6])
    assert api.choose_threshold(network, held_out, budget="max", progress=False).accuracy >= 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: api.fit_ensemble(n, LABELS), "logits: EarlyExitNetwork, must be a tensor or an array"),
        (lambda n: api.sweep(LOGITS, "labels", COST, "entropy"), "labels: str, must be a tensor"),
        (lambda n: api.exit_accuracy(None, LABELS), "logits: NoneType, must be a tensor"),
        (lambda n: api.exit_accuracy(LOGITS.argmax(-1)[..., None], LABELS), "logits: torch.int64, must be"),
        (lambda n: n.infer("image.png", api.MaxSoftmax(0.5)), "images: str, must be a tensor"),
        (lambda n: n.infer([IMAGES], api.MaxSoftmax(0.5)), "images: shape"),
        (lambda n: api.build_network(n.backbone, placement=["layer2"]), r"placement 'layer2': must be"),
        (lambda n: api.build_network(n.backbone, placement=[None]), "placement None: must be"),
        (lambda n: api.build_network(n.backbone, placement=[True]), "placement True: must be"),
        (lambda n: api.build_network(n.backbone, placement=2), "placement 2: must be"),
        (lambda n: api.build_network(n.backbone, placement={0, 1}), r"placement \{0, 1\}: must be"),
    ],
)
def test_wrong_types(network, call, message):
    with pytest.raises(api.ZtwError, match=message):
        call(network)


def test_placements_may_be_numpy_arrays(network):
    assert api.build_network(network.backbone, placement=np.array([0, 2])).placement == (0, 2)
    assert api.build_network(network.backbone, placement=range(2)).placement == (0, 1)
