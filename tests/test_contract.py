"""Test the contract of every backbone, head, connection, ensemble and rule."""

from __future__ import annotations

from itertools import cycle, product

import pytest
import torch
from conftest import small_network

import ztw
from ztw import testing
from ztw.exits.ensembles import ENSEMBLES
from ztw.exits.rules import RULES
from ztw.exits.thresholds import THRESHOLDS
from ztw.models.architectures import BACKBONES
from ztw.models.heads import HEADS

SMALL_BACKBONES = [name for name in BACKBONES if name not in ("resnet56", "resnet110")]
SHAPES: list[tuple[int, ...]] = [(16, 28, 28), (32, 14, 14), (64, 7, 7), (8, 3, 3), (8, 1, 1), (12,), (5, 12)]


class Median(ztw.Ensemble):
    """A user's ensemble, which is not linear."""

    def combine(self, log_probs):
        return log_probs.median(0).values


@pytest.mark.parametrize("arch", SMALL_BACKBONES)
@pytest.mark.parametrize("size", [32, 64])
def test_backbone(arch, size):
    testing.check_backbone(arch, size)


@pytest.mark.parametrize(
    ("head", "shape"),
    [*product([head for head in ztw.list_heads() if head != "identity"], SHAPES), ("identity", (5,))],
)
@pytest.mark.parametrize(
    "options", [{}, {"pooling": "avg", "width": 0.5}, {"pooling": "max", "layer_norm": True}]
)
def test_head(head, shape, options):
    testing.check_head(head, [shape], **options)


@pytest.mark.parametrize("shape", [(16, 9, 9), (12,)])
def test_a_head_that_takes_only_logits_says_so(shape):
    with pytest.raises(
        ztw.ZtwError, match=r"head 'identity': refuses all features \(head 'identity': features"
    ):
        testing.check_head("identity", [shape])
    testing.check_head("identity")


@pytest.mark.parametrize("kind", ztw.list_ensembles())
def test_ensemble(kind):
    testing.check_ensemble(kind)


@pytest.mark.parametrize("rule", ztw.list_rules())
def test_rule(rule):
    testing.check_rule(rule)


@pytest.mark.parametrize("choice", ztw.list_thresholds())
def test_thresholds(choice):
    testing.check_thresholds(choice)


def test_dataset():
    testing.check_dataset("digits")


@pytest.mark.parametrize("ics", ztw.list_connections())
@pytest.mark.parametrize("placement", ["all", [0, 2], [0.3, 0.9]])
@pytest.mark.parametrize("kind", [None, *ztw.list_ensembles()])
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
    assert cost[-1] > ztw.macs(network.backbone)


# every ensemble with every rule; the connections take turns. A fixed exit refuses ensembles
ADAPTIVE = [rule for rule in ztw.list_rules() if rule != "fixed_exit"]
PAIRS = list(product(ADAPTIVE, [None, *ztw.list_ensembles(), "median"]))
FIXED = [("fixed_exit", None, ics) for ics in ztw.list_connections()]


@pytest.mark.parametrize(
    ("rule", "kind", "ics"),
    [*((*pair, ics) for pair, ics in zip(PAIRS, cycle(ztw.list_connections()), strict=False)), *FIXED],
)
def test_infer_equals_sweep_sample_by_sample(rule, kind, ics):
    network = small_network(ics)
    count = 16
    images = torch.randn(count, 1, 10, 10, generator=torch.Generator().manual_seed(7))
    if kind:
        if kind == "median":
            ztw.register("ensemble", "median", Median)
        with torch.no_grad():
            logits = network(images)
        # labels on which all exits are better than chance, so that no fitted weight is 0
        labels = torch.where(torch.arange(count) % 3 == 0, torch.arange(count) % 5, logits.mean(0).argmax(-1))
        network.ensemble = ztw.fit_ensemble(logits, labels, kind)
    testing.check_agreement(network, images, rule)


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
    assert {"build_network", "ZtwError", "train_exits"} <= set(dir(ztw))
    for name in dir(ztw):
        assert getattr(ztw, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = ztw.nope  # type: ignore[attr-defined]


def test_a_star_import_brings_the_public_names_only():
    names: dict = {}
    exec("from ztw import *", names)
    assert names.keys() - {"__builtins__"} == set(dir(ztw))


def test_lists_of_names():
    assert (ztw.list_rules(), ztw.list_heads()) == (list(RULES), list(HEADS))
    assert (ztw.list_ensembles(), ztw.list_thresholds()) == (list(ENSEMBLES), list(THRESHOLDS))
    assert ztw.list_connections() == ["independent", "cascade", "cascade_detached", "boosted"]
    assert [*BACKBONES] == ztw.list_backbones()[: len(BACKBONES)]
    assert ztw.list_backbones()[-1] == "torchvision/vit_l_32"
