"""Test registered parts of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import small_network
from torch import nn

import ztw
from ztw import testing
from ztw.catalogue.parts import PARTS, PLUGINS
from ztw.data.prepare import prepare_dataset
from ztw.data.splits import open_split
from ztw.exits.ensembles import ENSEMBLES
from ztw.exits.rules import RULES
from ztw.exits.thresholds import THRESHOLDS, candidates
from ztw.models.architectures import BACKBONES
from ztw.models.heads import HEADS
from ztw.study.plugins import forget, load_plugins
from ztw.study.settings import DataSettings


class Margin(ztw.ThresholdRule):
    top = 1.0

    @staticmethod
    def score(logits, state):
        largest = logits.softmax(-1).topk(2).values
        return largest[:, 0] - largest[:, 1], ()

    @staticmethod
    def worst(num_classes):
        return 0.0


class Half(ztw.ThresholdChoice):
    def candidates(self, logits, labels, cost, rule, points=1000):
        found = candidates("shared", logits, labels, cost, rule, points)
        return ztw.Candidates(found.parameter[::2], found.thresholds[::2])


class Fitted(ztw.Ensemble):
    """The largest log-probability of any exit, and a bias that is fitted."""

    bias: torch.Tensor

    def __init__(self, exits, num_classes, include_final=True):
        super().__init__(exits, num_classes, include_final)
        self.register_buffer("bias", torch.zeros(exits, num_classes))

    def combine(self, log_probs):
        return log_probs.amax(0) + self.bias[len(log_probs) - 1]

    def fit_exit(self, exit, log_probs, labels):
        self.bias[exit] = torch.bincount(labels, minlength=self.num_classes).add(1).log()


class LinearHead(nn.Module):
    def __init__(self, shape, num_classes, previous):
        super().__init__()
        self.linear = nn.Linear(shape[0] + previous, num_classes)

    def forward(self, features, previous=None):
        mean = features.mean((2, 3))
        return self.linear(mean if previous is None else torch.cat([mean, previous], 1))


def linear_head(shape, num_classes, previous, size, options):
    return LinearHead(shape, num_classes, previous)


def two_convolutions(name, num_classes, channels, size, options):
    stages = [nn.Conv2d(channels, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)]
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return ztw.Backbone(name, stages, classifier, (channels, size, size))


def squares():
    labels = torch.arange(30) % 3
    images = (80 * labels[:, None, None, None] + torch.zeros(30, 1, 8, 8)).byte()
    return {"train": (images, labels), "test": (images[:6], labels[:6].int())}


def test_every_kind_is_in_its_table_and_keeps_the_contract(tmp_path):
    ztw.register("rule", "margin", Margin)
    ztw.register("ensemble", "largest", Fitted)
    ztw.register("head", "linear", linear_head)
    ztw.register("thresholds", "half", Half)
    ztw.register("backbone", "two", two_convolutions, blocks=2)
    ztw.register("dataset", "squares", squares, num_classes=3, size=8, channels=1)
    testing.check_registered()
    testing.check_dataset("squares")
    backbone = ztw.build_backbone("two", num_classes=3, channels=1, size=8)
    network = ztw.build_network(backbone, "cascade", head="linear").eval()
    images = torch.randn(20, 1, 8, 8)
    network.ensemble = ztw.fit_ensemble(network(images).detach(), torch.arange(20) % 3, "largest")
    assert network.infer(images, Margin(0.1)).logits.shape == (20, 3)
    assert ztw.macs(network).diff().gt(0).all()
    record = prepare_dataset("squares", tmp_path)
    assert record["counts"] == {"train": 30, "test": 6}
    assert record["plugins"] == PLUGINS == {}
    assert open_split(record, DataSettings(), "test").labels.tolist() == [0, 1, 2, 0, 1, 2]
    forget()
    tables = (RULES, ENSEMBLES, HEADS, THRESHOLDS, BACKBONES)
    assert not {"margin", "largest", "linear", "half", "two"} & {name for table in tables for name in table}
    with pytest.raises(ztw.ZtwError, match="unknown data set 'squares'"):
        testing.check_dataset("squares")


def test_a_decorator_returns_the_part():
    assert ztw.register("rule", "margin")(Margin) is Margin
    assert RULES["margin"] is Margin
    ztw.register("rule", "margin", Margin)  # as when a notebook's cell runs again
    assert list(PARTS) == [("rule", "margin")]
    with pytest.raises(ztw.ZtwError, match=r"rule 'margin': is registered already, by \w*test_registration"):
        ztw.register("rule", "margin", ztw.Patience)


@pytest.mark.parametrize(
    ("arguments", "facts", "message"),
    [
        (
            ("rool", "x", Margin),
            {},
            "unknown kind of part 'rool'; known: rule, ensemble, head, thresholds, back",
        ),
        (("rule", "patience", Margin), {}, "rule 'patience': is .*built-in.*choose another"),
        (("rule", "x", Margin(0.5)), {}, "must be a class derived from ztw.ExitRule"),
        (("rule", "x", Margin), {"blocks": 1}, "rule 'x': unknown .*'blocks'.*takes none"),
        (("head", "x", 3), {}, "head 'x': 3, must be a function"),
        (("thresholds", "x", ztw.ThresholdChoice), {}, "thresholds 'x': ThresholdChoice lacks candidates"),
        (("backbone", "x", two_convolutions), {}, "backbone 'x': .*'blocks' is missing"),
        (("backbone", "x", two_convolutions), {"blocks": 0}, "blocks 0, must be a whole number >= 1"),
        (("dataset", "digits", squares), {}, "dataset 'digits': is .*built-in"),
        (
            ("dataset", "x", squares),
            {"num_classes": 1, "size": 8, "channels": 1},
            "num_classes 1, must be a whole number >= 2",
        ),
    ],
)
def test_wrong_parts_are_refused(arguments, facts, message):
    with pytest.raises(ztw.ZtwError, match=message):
        ztw.register(*arguments, **facts)
    assert not PARTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda splits: splits.pop("test"), "must return a mapping of train and test"),
        (lambda splits: splits.update(test=3), "test: must be"),
        (lambda splits: splits.update(test=(torch.zeros(2, 1, 8, 8), torch.zeros(2).long())), "torch.uint8"),
        (
            lambda splits: splits.update(train=(splits["train"][0][:2], splits["train"][1][:2])),
            "2 of 3 classes",
        ),
        (
            lambda splits: splits.update(test=(splits["test"][0], splits["test"][1] + 1)),
            r"labels 1..3, must lie in 0..2",
        ),
        (lambda splits: splits.update(test=(splits["test"][0], splits["test"][1][:2])), "for 6 images"),
    ],
)
def test_a_data_set_that_differs_from_its_metadata(change, message, tmp_path):
    def broken():
        splits = squares()
        change(splits)
        return splits

    ztw.register("dataset", "broken", broken, num_classes=3, size=8, channels=1)
    with pytest.raises(ztw.ZtwError, match=f"data set broken: .*{message}"):
        prepare_dataset("broken", tmp_path)


def test_an_own_rule_in_a_network():
    ztw.register("rule", "margin", Margin)
    images = torch.randn(16, 1, 10, 10, generator=torch.Generator().manual_seed(7))
    testing.check_agreement(small_network(), images, "margin")


def test_the_example_keeps_the_contract_and_computes_its_scores():
    load_plugins([str(Path(__file__).parents[1] / "examples/my_parts.py")])
    testing.check_registered()
    log_probs = torch.tensor([[[0.5, 0.3, 0.2]], [[0.7, 0.2, 0.1]], [[0.1, 0.1, 0.8]]]).log()
    scores, state = RULES["margin"].score(log_probs[:, 0], ())
    torch.testing.assert_close(scores, torch.tensor([0.2, 0.5, 0.7]))
    assert state == ()
    median = ENSEMBLES["median"](3, 3)
    torch.testing.assert_close(median.combine(log_probs).exp(), torch.tensor([[0.5, 0.2, 0.2]]))
    torch.testing.assert_close(median.combine(log_probs[:2])[0, 0].exp().square(), torch.tensor(0.35))
