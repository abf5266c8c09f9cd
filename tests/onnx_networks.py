"""Small networks whose samples leave at every exit, for the tests of ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import ztw
from ztw.exits.rules import ThresholdRule, exit_scores, fit_rule
from ztw.testing import likely_labels

CLASSES = 5
BATCHES = (0, 1, 7, 64)


@cache
def trained_looking(connection: str) -> ztw.EarlyExitNetwork:
    """Return a network of four small blocks and three ICs, with logits of a trained network's spread."""
    torch.manual_seed(3)
    widths = (3, 8, 8, 8, 8)
    stages = [
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in pairwise(widths)
    ]
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(8 * 10 * 10, CLASSES))
    network = ztw.build_network(
        ztw.Backbone("small", stages, classifier, (3, 10, 10)), connection, placement=(0, 1, 2)
    )
    network.eval()
    spread_out(network)
    return network


@torch.no_grad()
def spread_out(network: ztw.EarlyExitNetwork) -> None:
    """Scale every exit's logits to the spread of a trained network."""
    images = torch.randn(64, *network.backbone.input_shape, generator=torch.Generator().manual_seed(4))
    for exit in range(network.exits):
        linear: Any = [
            part
            for part in (*network.heads, network.backbone.classifier)[exit].modules()
            if isinstance(part, nn.Linear)
        ][-1]
        linear.weight.mul_(2 / network(images)[exit].std(0).mean())
        linear.bias.sub_(network(images)[exit].mean(0))


@torch.no_grad()
def network_of(connection: str, kind: str | None) -> ztw.EarlyExitNetwork:
    """Return the network with an ensemble of a kind, or without an ensemble."""
    network = trained_looking(connection)
    logits = network(images_for(network, 200))
    noise = torch.randn(200, CLASSES, generator=torch.Generator().manual_seed(1))
    labels = (logits.sum(0) + 8 * noise).argmax(-1)  # every exit is right on some samples, none on all
    network.ensemble = None if kind is None else ztw.fit_ensemble(logits, labels, kind)
    return network


def images_for(network: ztw.EarlyExitNetwork, count: int) -> Tensor:
    """Return images (count, C, H, W), the same in every call."""
    return torch.randn(count, *network.backbone.input_shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def rule_through_the_middle(network: ztw.EarlyExitNetwork, name: str, per_exit: bool = False) -> ztw.ExitRule:
    """Return a rule by which samples leave at several exits, with no score near a threshold."""
    logits = network(images_for(network, 64))
    answers = logits if network.ensemble is None else network.ensemble(logits)
    kind = fit_rule(answers, likely_labels(answers), name)
    if not issubclass(kind, ThresholdRule):
        rules: list[ztw.ExitRule] = [kind(t) for t in (1, 2)]  # type: ignore[call-arg]
        return max(rules, key=lambda rule: len(ztw.simulate_exits(answers, rule)[0].unique()))
    scores = exit_scores(answers, kind)[:-1]
    if not per_exit:
        return kind(float(kind.thresholds(widest_gap(scores.flatten()))))
    return kind(tuple(kind.thresholds(torch.stack([widest_gap(row) for row in scores])).tolist()))


def widest_gap(scores: Tensor) -> Tensor:
    """Return the middle of the widest gap between scores, of the middle 40 % of the scores."""
    ordered = scores.sort().values
    ordered = ordered[len(ordered) * 3 // 10 : len(ordered) * 7 // 10]
    place = ordered.diff().argmax()
    assert ordered[place + 1] - ordered[place] > 1e-4
    return (ordered[place] + ordered[place + 1]) / 2


def assert_as_infer(
    network: ztw.EarlyExitNetwork,
    rule: ztw.ExitRule,
    runner: ztw.OnnxRunner,
    sizes: Sequence[int] = BATCHES,
    tolerance: float = 1e-4,
) -> None:
    """Check batches of every size: each image leaves at the same exit as in `infer`, with the same logits."""
    images = images_for(network, max(sizes))
    exits: set[int] = set()
    for size in sizes:
        expected, found = network.infer(images[:size], rule), runner(images[:size])
        assert torch.equal(found.exit_index, expected.exit_index)
        torch.testing.assert_close(found.logits, expected.logits, atol=tolerance, rtol=tolerance)
        exits |= set(expected.exit_index.tolist())
    # Exits of an ensemble nearly always agree
    assert len(exits) > 1 or isinstance(rule, ztw.Patience | ztw.FixedExit)
