"""One contract for every entry of the tables of backbones, heads, IC modes, ensembles and rules."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from conftest import small_network

import ztw
from ztw.exits.rules import exit_rule, exit_scores
from ztw.exits.sweep import decide
from ztw.models.heads import HeadOptions

SMALL_BACKBONES = [name for name in ztw.BACKBONES if name not in ("resnet56", "resnet110")]
SHAPES: list[tuple[int, ...]] = [(16, 28, 28), (32, 14, 14), (64, 7, 7), (8, 3, 3), (8, 1, 1), (12,), (5, 12)]


@pytest.mark.parametrize("arch", SMALL_BACKBONES)
@pytest.mark.parametrize("size", [32, 64])
def test_backbone(arch, size):
    backbone = ztw.build_backbone(arch, classes=7, channels=3, size=size).eval()
    images = torch.randn(2, 3, size, size)
    features = list(backbone.features(images))
    assert len(features) == len(backbone.stages)
    assert [tuple(f.shape[1:]) for f in features] == backbone.feature_shapes
    assert backbone(images).shape == (2, 7)
    torch.testing.assert_close(backbone(images), backbone.classifier(features[-1]))


@pytest.mark.parametrize(("head", "previous"), list(product(ztw.HEADS, (0, 5))))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    "options", [{}, {"pooling": "avg", "width": 0.5}, {"pooling": "max", "layer_norm": True}]
)
def test_head(head, previous, shape, size, options):
    module = ztw.HEADS[head](shape, 5, previous, size, HeadOptions(**options))
    before = torch.randn(3, 5) if previous else None
    out = module(torch.randn(3, *shape), before)
    assert out.shape == (3, 5)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("ics", list(ztw.IC_MODES))
@pytest.mark.parametrize("placement", ["all", [0, 2], [0.3, 0.9]])
@pytest.mark.parametrize("kind", [None, *ztw.ENSEMBLES])
def test_network(ics, placement, kind):
    network = small_network(ics, placement)
    images = torch.randn(3, 1, 10, 10)
    with torch.no_grad():
        logits = network(images)
    assert logits.shape == (network.exits, 3, 5)
    if kind:
        network.ensemble = ztw.fit_ensemble(logits, torch.tensor([0, 1, 2]), kind)
    cost = ztw.macs(network)
    assert cost.shape == (network.exits,)
    assert cost.dtype == torch.float64
    assert cost[0] > 0
    assert cost.diff().gt(0).all()
    assert cost[-1] > ztw.backbone_macs(network.backbone)


@pytest.mark.parametrize("rule", list(ztw.RULES))
def test_rule_extremes(rule, logits, labels, cost):
    curve = ztw.sweep(logits, labels, cost, rule)
    torch.testing.assert_close(curve.exit_fraction.sum(1), torch.ones(len(curve.parameter)).double())
    assert curve.cost.diff().ge(-1e-12).all(), "a rule's own grid runs from the cheapest to the most cautious"
    last = torch.zeros(4, dtype=torch.float64)
    last[3] = 1
    assert curve.exit_fraction[-1].tolist() == last.tolist()
    assert curve.exit_fraction[0, 0] == 1, "the cheapest lets everything leave at exit 1"


def between(scores: torch.Tensor, points: int) -> torch.Tensor:
    """Values midway between two scores: batch size changes the last bits of a score."""
    values = scores.flatten().unique()
    wide = values.diff() > 2e-5
    middle = ((values[1:] + values[:-1]) / 2)[wide]
    return middle[torch.linspace(0, len(middle) - 1, points).long()]


def apart(scores: torch.Tensor, rule: str) -> list[Any]:
    """Parameters no score lies on: shared ones, then for rules with a threshold some per exit."""
    if rule == "patience":
        return [0, 1, 2, 3]
    sign = -1 if rule == "entropy" else 1
    shared = [-10.0, *between(scores, 5).tolist(), 10.0]
    per_exit = torch.stack([between(score, 3).roll(exit) for exit, score in enumerate(scores[:-1])], dim=1)
    return [sign * value for value in shared] + (sign * per_exit).tolist()


@pytest.mark.parametrize("ics", list(ztw.IC_MODES))
@pytest.mark.parametrize("kind", [None, *ztw.ENSEMBLES])
@pytest.mark.parametrize("rule", list(ztw.RULES))
def test_infer_is_sweep_sample_by_sample(ics, kind, rule):
    network = small_network(ics)
    count = 16
    images = torch.randn(count, 1, 10, 10, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = network(images)
    # labels the exits know something about, so that no fitted weight vanishes
    labels = torch.where(torch.arange(count) % 3 == 0, torch.arange(count) % 5, logits.mean(0).argmax(-1))
    answers = logits
    if kind:
        network.ensemble = ztw.fit_ensemble(logits, labels, kind)
        answers = network.ensemble(logits)
    scores = exit_scores(answers, exit_rule(rule))
    kind_of_rule: Any = exit_rule(rule)
    parameters, cost, seen = apart(scores, rule), ztw.macs(network), set()
    decided = [decide(answers, kind_of_rule(parameter)) for parameter in parameters]
    for shape in (float, list):  # one threshold for all exits, and one each
        rows = [
            row for row, parameter in enumerate(parameters) if isinstance(parameter, list) == (shape is list)
        ]
        swept = torch.tensor([parameters[row] for row in rows], dtype=torch.float64)
        for n in range(count if rows else 0):
            curve = ztw.sweep(answers[:, n : n + 1], labels[n : n + 1], cost, rule, swept)
            for place, row in enumerate(rows):
                left, answer_exit = decided[row]
                assert curve.exit_fraction[place, left[n]] == 1
                assert curve.accuracy[place] == (answers[answer_exit[n], n].argmax() == labels[n])
    for parameter, (left, answer_exit) in zip(parameters, decided, strict=True):
        for batch_size in (1, 7, count):
            results = [network.infer(part, kind_of_rule(parameter)) for part in images.split(batch_size)]
            exit_index = torch.cat([result.exit_index for result in results])
            picked = torch.cat([result.logits for result in results])
            assert exit_index.tolist() == left.tolist()
            torch.testing.assert_close(
                picked, answers[answer_exit, torch.arange(count)], atol=1e-4, rtol=1e-4
            )
            seen |= set(exit_index.tolist())
    assert len(seen) >= 3, "the test must see samples leave at several exits"


def test_infer_stops_computing():
    network = small_network()
    images = torch.randn(16, 1, 10, 10)
    sizes: list[int] = []
    for stage in network.backbone.stages:
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    result = network.infer(images, ztw.MaxSoftmax(0.6))
    left = torch.bincount(result.exit_index, minlength=4)
    expected = [16, 16 - int(left[0]), 16 - int(left[:2].sum())]
    assert sizes == [size for size in expected if size]
    assert 0 < int(left[0]) < 16


def test_infer_in_training_mode_is_refused():
    with pytest.raises(ztw.ZtwError, match=r"call .eval\(\) first"):
        small_network().train().infer(torch.zeros(1, 1, 10, 10), ztw.MaxSoftmax(0.5))


def test_infer_refuses_thresholds_for_another_number_of_exits():
    with pytest.raises(ztw.ZtwError, match=r"MaxSoftmax: 2 thresholds, must be one or 3 \(4 exits\)"):
        small_network().infer(torch.zeros(1, 1, 10, 10), ztw.MaxSoftmax([0.5, 0.5]))


def test_public_names_exist():
    for name in ztw.__all__:
        assert getattr(ztw, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = ztw.nope
