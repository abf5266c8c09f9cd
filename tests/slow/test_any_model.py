"""Models of every kind through the whole path: cut, train, predict, choose, infer, save, load, export, ONNX Runtime."""

from __future__ import annotations

from typing import Any

import any_models
import pytest
import torch
from any_models import CASES, CLASSES, batch_like, one_of, texts
from conftest import same, state_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import ztw
from ztw.batch import Batch, pick
from ztw.models.exporting import call, first_tensor
from ztw.models.operations import unfused_layers

SAMPLES = 24
aten = torch.ops.aten


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """The logits (N, C) of a model of any kind."""
    return first_tensor(call(getattr(model, "_orig_mod", model), batch))


def test_the_whole_path(name, tmp_path):
    case, model = CASES[name], any_models.build(name)
    batch, labels = batch_like(case.example, SAMPLES), torch.arange(SAMPLES) % CLASSES
    with torch.no_grad():
        original = logits_of(model, batch)
    before = state_of(model)
    by_default(model, case, batch, labels, original)

    backbone = ztw.as_backbone(model, example=case.example, at=case.at)
    assert len(backbone.stages) == len(case.at)
    with torch.no_grad():
        torch.testing.assert_close(backbone(batch), original, atol=1e-4, rtol=1e-3)
    network = ztw.build_network(backbone, "cascade_detached", head="pool", progress=False)
    frozen, heads = state_of(network.backbone), state_of(network.heads)
    ztw.train_exits(network, (batch, labels), epochs=1, batch_size=8, lr=0.01, progress=False)
    assert same(frozen, state_of(network.backbone))
    assert not same(heads, state_of(network.heads))
    assert same(before, state_of(model)), "the user's model has changed"
    with torch.no_grad():
        assert logits_of(model, batch).equal(original), "the user's model has changed"
    spread_out(network, batch)

    logits, found = ztw.predict(network, (batch, labels), progress=False)
    assert found.equal(labels)
    point = ztw.choose_threshold(network, (logits, labels), budget="max", points=50, progress=False)
    of_exits = (logits.argmax(-1) == labels).double().mean(1)
    # with shared thresholds all samples can leave at the first or at the last exit
    assert point.accuracy >= float(of_exits[[0, -1]].max()) - 1e-9
    rule = apart(logits)
    assert_decided(network.infer(batch, rule), logits, rule)
    assert_decided(network.infer(one_of(batch, 3), rule), logits[:, 3:4], rule)
    assert len(ztw.simulate_exits(logits, rule)[0].unique()) > 1, "all samples leave at one exit"

    notes: list[Any] = []
    ztw.save(network, tmp_path / "network", rule, progress=notes.append)
    assert notes == [], "the network cannot be loaded without the model's code"
    loaded, loaded_rule = ztw.load(tmp_path / "network")
    assert loaded_rule == rule
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), logits, atol=1e-3, rtol=1e-3)
    assert_decided(loaded.infer(batch, rule), logits, rule)

    path = ztw.export_onnx(network, rule, tmp_path / "network.onnx")
    runner = ztw.OnnxRunner(path, threads=1, cache=False)
    torch.testing.assert_close(runner.logits(batch), logits, atol=1e-3, rtol=1e-3)
    for rows in (slice(0, SAMPLES), slice(0, 7), slice(3, 4)):
        part = pick(batch, torch.arange(SAMPLES)[rows])
        assert_decided(runner(part), logits[:, rows], rule)


def by_default(model: nn.Module, case: any_models.Case, batch: Any, labels: Tensor, original: Tensor) -> None:
    """Without at=: the number of blocks, the logits, joint training of everything, and early exits."""
    backbone = ztw.as_backbone(model, example=case.example)
    assert len(backbone.stages) == case.blocks
    with torch.no_grad():
        torch.testing.assert_close(backbone(batch), original, atol=1e-4, rtol=1e-3)
    counted, expected = ztw.macs(backbone), counted_otherwise(model, any_models.one_of(case.example))
    assert counted == pytest.approx(expected, rel=1e-3)
    placement = sorted({0, len(backbone.stages) // 2})
    network = ztw.build_network(backbone, head="mlp", width=0.25, placement=placement, progress=False)
    weights = state_of(network)
    ztw.train_exits(network, (batch, labels), 1, regime="joint", batch_size=12, progress=False)
    trained = state_of(network)
    assert all(
        not same({key: weights[key]}, trained)
        for key, _ in network.named_parameters()
        if key.endswith("weight") and key.startswith(("backbone.stages.0", "heads.0"))
    )
    logits, _ = ztw.predict(network, (batch, labels), progress=False)
    rule = apart(logits)
    assert_decided(network.infer(batch, rule), logits, rule)


@torch.no_grad()
def spread_out(network: ztw.EarlyExitNetwork, batch: Any) -> None:
    """Scale the logits of the ICs to the spread of a trained network."""
    for exit, head in enumerate(network.heads):
        linear: Any = head.linear
        linear.weight.mul_(2 / network(batch)[exit].std(0).mean())
        linear.bias.sub_(network(batch)[exit].mean(0))


def apart(logits: Tensor) -> ztw.MaxSoftmax:
    """Thresholds in the widest gap between the scores of each exit; none passes where all are the same."""
    bounds = []
    for scores in logits[:-1].softmax(-1).amax(-1).double():
        ordered = scores.sort().values
        gaps = ordered.diff()
        place = int(gaps.argmax())
        bounds.append(float(ordered[place : place + 2].mean()) if gaps[place] > 1e-3 else 1.0)
    return ztw.MaxSoftmax(bounds)


def assert_decided(result: ztw.ExitResult, logits: Tensor, rule: ztw.MaxSoftmax) -> None:
    """Each sample leaves where the logits (K, N, C) of all exits say, with the logits of that exit."""
    expected, _ = ztw.simulate_exits(logits, rule)
    assert result.exit_index.equal(expected)
    picked = logits[expected, torch.arange(logits.shape[1])]
    torch.testing.assert_close(result.logits, picked, atol=1e-3, rtol=1e-3)


class Biases(TorchDispatchMode):
    """Counts one operation per number that a bias is added to, as ptflops does and PyTorch's counter does not."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is aten.addmm.default or (func is aten.convolution.default and args[2] is not None):
            self.count += output.numel()
        return output


@torch.no_grad()
def counted_otherwise(model: nn.Module, sample: Any) -> float:
    """The MACs of the uncut model, from PyTorch's own counter of operations."""
    with unfused_layers(), FlopCounterMode(display=False) as flops, Biases() as biases:
        logits_of(model, sample)
    return flops.get_total_flops() / 2 + biases.count


@pytest.mark.parametrize("name", ["Hugging Face BERT", "Hugging Face DistilBERT"])
@pytest.mark.parametrize("padded", [True, False])
def test_texts_of_other_lengths(name, padded, tmp_path):
    """Cut and exported with one length, run with others; the example need not have padding."""
    example = (
        texts()
        if padded
        else {"input_ids": torch.ones(2, 12).long(), "attention_mask": torch.ones(2, 12).long()}
    )
    model = any_models.build(name)
    backbone = ztw.as_backbone(model, example=example, at=CASES[name].at)
    assert [item.shape for item in backbone.inputs.inputs] == [(None,), (None,)]
    network = ztw.build_network(backbone, "cascade_detached", head="pool", progress=False).eval()
    spread_out(network, texts(64))
    with torch.no_grad():
        rule = apart(network(texts(64)))
    runner = ztw.OnnxRunner(ztw.export_onnx(network, rule, tmp_path / "network.onnx"), threads=1, cache=False)
    for length in (3, 12, 31):
        short = texts(8, length)
        longer = {key: nn.functional.pad(value, (0, 9)) for key, value in short.items()}
        with torch.no_grad():
            logits = network(short)
            torch.testing.assert_close(logits[-1], logits_of(model, short), atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(network(longer), logits, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(runner.logits(short), logits, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(runner.logits(longer), logits, atol=1e-4, rtol=1e-3)
        clear = (logits[:-1].softmax(-1).amax(-1) - torch.tensor(rule.threshold)[:, None]).abs().amin(
            0
        ) > 1e-4
        expected, _ = ztw.simulate_exits(logits, rule)
        for found in (network.infer(short, rule), network.infer(longer, rule), runner(short), runner(longer)):
            assert found.exit_index[clear].equal(expected[clear])
