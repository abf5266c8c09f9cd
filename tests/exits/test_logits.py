"""Test the checks of logits and labels: infinities, every integer type, and rules on such logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ztw
from ztw.exits.logits import check_logits, class_labels, read_predictions
from ztw.exits.rules import RULES, fit_rule
from ztw.exits.sweep import simulate_exits
from ztw.tensors import write_tensors

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]


def changed(logits: Tensor, value: float, *places: tuple) -> Tensor:
    logits = logits.clone()
    for place in places:
        logits[place] = value
    return logits


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("value", "places", "message"),
    [
        (math.inf, [(1, 7, 2), (1, 7, 3), (3, 0, 0)], r"3 values are \+inf, must be finite"),
        (math.nan, [(1, 7, 2)], "1 values are NaN, must be finite"),
        (-math.inf, [(2, 5, 1)], "1 values are -inf, must be finite"),
    ],
)
def test_infinite_logits_are_refused_as_nan_is(logits, labels, cost, rule, value, places, message):
    bad = changed(logits, value, *places)
    with pytest.raises(ztw.ZtwError, match=f"^logits: {message}"):
        ztw.sweep(bad, labels, cost, rule)
    with pytest.raises(ztw.ZtwError, match=f"^logits: {message}"):
        simulate_exits(bad, fit_rule(logits, labels, rule)(1))  # type: ignore[call-arg]


def test_infinities_of_both_signs_and_nan_are_told_apart(logits):
    with pytest.raises(ztw.ZtwError, match="1 values are NaN"):
        check_logits(changed(changed(logits, math.inf, (0, 0, 0)), math.nan, (1, 1, 1)))
    with pytest.raises(ztw.ZtwError, match=r"1 values are \+inf"):
        check_logits(changed(changed(logits, math.inf, (0, 0, 0)), -math.inf, (1, 1)))


def masked(logits: Tensor) -> Tensor:
    """Return logits in which some classes have probability 0 in float32, but never all classes of a sample."""
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(logits.shape, generator=generator) < 0.5
    mask[..., 3] &= ~mask.all(-1)
    return logits.masked_fill(mask, torch.finfo(logits.dtype).min)


@pytest.mark.parametrize("rule", RULES)
def test_rules_agree_sample_by_sample_where_classes_have_probability_0(logits, labels, cost, rule):
    logits = masked(logits)
    kind = fit_rule(logits, labels, rule)
    curve = ztw.sweep(logits, labels, cost, kind)
    picked = range(0, len(curve.parameter), max(1, len(curve.parameter) // 40))
    network = Given(logits)
    for row in picked:
        value = curve.parameter[row].item()
        chosen = kind(int(value) if rule == "patience" else value)  # type: ignore[call-arg]
        exit_index, answers = simulate_exits(logits, chosen)
        right = logits[answers, torch.arange(200)].argmax(-1) == labels
        assert curve.accuracy[row] == right.double().mean()
        shares = torch.bincount(exit_index, minlength=4) / 200
        torch.testing.assert_close(curve.exit_fraction[row], shares.double())
        result = network.infer(torch.arange(200.0)[:, None, None, None], chosen)
        assert torch.equal(result.exit_index, exit_index)
        assert torch.equal(result.logits.argmax(-1), logits[answers, torch.arange(200)].argmax(-1))


class Given(ztw.EarlyExitNetwork):
    """A network that returns given logits. An image is the index of its sample."""

    def __init__(self, logits: Tensor) -> None:
        num_classes = logits.shape[2]
        heads = [Look(table) for table in logits]
        backbone = ztw.Backbone("given", [nn.Identity() for _ in heads], heads[-1], (1, 1, 1))
        assert backbone.num_classes == num_classes
        super().__init__(backbone, heads[:-1], tuple(range(len(heads) - 1)), "independent")
        self.eval()


class Look(nn.Module):
    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.get_buffer("table")[numbers.flatten().long()]


@pytest.mark.parametrize("dtype", [*INTEGERS, *UNSIGNED])
@pytest.mark.parametrize("rule", RULES)
def test_labels_of_any_integer_type(logits, labels, cost, rule, dtype):
    labelled = (labels, labels.to(dtype))
    expected, found = (ztw.sweep(logits, given, cost, fit_rule(logits, given, rule)) for given in labelled)
    assert torch.equal(expected.accuracy, found.accuracy)


@pytest.mark.parametrize("dtype", [*INTEGERS, *UNSIGNED])
def test_labels_become_int64(logits, labels, dtype):
    check_logits(logits, labels.to(dtype))
    assert class_labels(labels.to(dtype)).dtype == torch.int64
    assert torch.equal(class_labels(labels.to(dtype)), labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.complex64])
def test_labels_that_are_no_integers_are_refused(logits, labels, cost, dtype):
    with pytest.raises(ztw.ZtwError, match=rf"labels: {dtype}, must be integers"):
        ztw.sweep(logits, labels.to(dtype), cost, "max_softmax")


@pytest.mark.parametrize("value", [-1, 5])
def test_labels_out_of_range_are_shown(logits, labels, value):
    with pytest.raises(ztw.ZtwError, match=rf"labels: must lie in 0..4, got .*{value}"):
        check_logits(logits, changed(labels, value, (9,)).to(torch.int8))


def test_predictions_are_read_with_labels_of_any_integer_type(tmp_path, logits, labels):
    path = tmp_path / "test.safetensors"
    write_tensors(path, {"logits": logits, "labels": labels.to(torch.uint8)})
    assert torch.equal(read_predictions(path)[1], labels)
    assert read_predictions(path)[1].dtype == torch.int64
    write_tensors(path, {"other": logits})
    with pytest.raises(ztw.ZtwError, match=r"test.safetensors: has no labels and no logits"):
        read_predictions(path)
