"""Networks for texts, and for several tensors, leave in ONNX Runtime where they do in PyTorch."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_flat import (
    Causal,
    Flat,
    LengthFirst,
    Recurrent,
    Text,
    Two,
    assert_as_flat,
    file_of,
    padded,
    tokens,
)
from text_networks import text_network, texts

import ztw
from ztw.batch import InputSpec, pick
from ztw.exits.rules import exit_scores
from ztw.onnx.nesting import nest


def two(count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.randn(count, 12, generator=torch.Generator().manual_seed(count))
    return numbers[:, :8], numbers[:, 8:]


@pytest.mark.parametrize(
    ("module", "batch", "lengths"),
    [
        (Text, padded, (9, 2, 20)),
        (LengthFirst, padded, (9, 2)),
        (Causal, tokens, (9, 2, 20)),
        (Recurrent, tokens, (9, 2)),
        (Two, two, (1,)),
    ],
)
def test_samples_leave_where_their_scores_say(module: type[Flat], batch: Any, lengths: Any, tmp_path):
    """Exported at one length; masks and positions follow the length of each batch."""
    torch.manual_seed(0)
    flat = module().eval()
    inputs = InputSpec.of_example(batch(4, 6), free=lambda *_: len(lengths) > 1)
    runner = ztw.OnnxRunner(file_of(flat, inputs, tmp_path / "flat.onnx"), threads=1, cache=tmp_path)
    assert_as_flat(flat, runner, [batch(count, length) for length in lengths for count in (7, 1)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network for texts, with an IC that takes the mask and the previous exit's logits, and its file."""
    network = text_network("cascade_detached")
    rule = middle(network)
    path = ztw.export_onnx(network, rule, tmp_path_factory.mktemp("onnx") / "texts.onnx")
    return network, rule, path


def middle(network: ztw.EarlyExitNetwork) -> ztw.ExitRule:
    """A rule by which about half of the samples leave at each exit."""
    batch, _ = texts()
    with torch.no_grad():
        scores = exit_scores(network(batch), ztw.MaxSoftmax)[:-1]
    ordered = scores.sort(1).values
    return ztw.MaxSoftmax(tuple(((ordered[:, 47] + ordered[:, 48]) / 2).tolist()))


def test_texts(exported, tmp_path):
    network, rule, path = exported
    batch, _ = texts()
    runner = ztw.OnnxRunner(path, threads=2, cache=tmp_path)
    for length in (7, 3):
        shorter = {name: tensor[:, :length] for name, tensor in batch.items()}
        for count in (96, 1, 0):
            some = pick(shorter, torch.arange(count))
            expected, found = network.infer(some, rule) if count else None, runner(some)
            assert len(found.logits) == count
            if expected is not None:
                assert torch.equal(found.exit_index, expected.exit_index)
                torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
    assert set(runner(batch).exit_index.tolist()) == {0, 1, 2}


def test_texts_as_arrays_lists_and_other_integers(exported):
    network, rule, path = exported
    batch, _ = texts(8)
    expected = network.infer(batch, rule)
    runner = pickle.loads(pickle.dumps(ztw.OnnxRunner(path, cache=False)))
    arrays = {name: tensor.numpy().astype(np.int32) for name, tensor in reversed(batch.items())}
    for given in (arrays, {name: tensor.tolist() for name, tensor in batch.items()}):
        torch.testing.assert_close(runner(given).logits, expected.logits, atol=1e-5, rtol=1e-4)


def test_texts_that_do_not_fit(exported):
    _, _, path = exported
    batch, _ = texts(4)
    runner = ztw.OnnxRunner(path, cache=False)
    ids, mask = batch.values()
    for wrong, message in (
        (ids, "inputs: Tensor, must be a dict of input_ids, attention_mask"),
        ({"input_ids": ids}, r"inputs: \['input_ids'\], must be a dict of input_ids, attention_mask"),
        ({**batch, "attention_mask": mask[:2]}, "inputs: input_ids 4, attention_mask 2 samples"),
        ({**batch, "input_ids": ids.float()}, "input_ids: float32, must be int64"),
        ({**batch, "input_ids": ids[0]}, r"input_ids: shape \(7,\), must be \(N, any\)"),
        ({**batch, "input_ids": ids + 1000}, "ONNX Runtime cannot compute these inputs .*out of data bounds"),
    ):
        with pytest.raises(ztw.ZtwError, match=message):
            runner(wrong)


def test_thresholds_for_texts_are_chosen_in_onnx_runtime(exported):
    network, _, path = exported
    data = texts()
    runner = ztw.OnnxRunner(path, cache=False)
    point = ztw.choose_threshold(runner, data, budget="max", progress=False)
    assert point == ztw.choose_threshold(network, data, budget="max", progress=False)


def test_a_file_of_texts_holds_no_path_of_this_machine(exported):
    """The exporter notes the line of the source of each node."""
    assert b"text_networks" not in exported[2].read_bytes()
    assert [item.name for item in onnx.load(exported[2]).graph.input] == [
        "input_ids",
        "attention_mask",
        "bounds",
    ]


def test_an_optimised_graph_that_cannot_be_nested_is_not_used(exported, tmp_path, monkeypatch):
    network, rule, path = exported

    def refuse(flat: Any, form: Any, single: bool = False, optimised: bool = False) -> Any:
        if optimised and not single:
            raise ztw.ZtwError("refused")
        return nest(flat, form, single, optimised)

    monkeypatch.setattr("ztw.onnx.nesting.nest", refuse)
    batch, _ = texts(8)
    found, expected = ztw.OnnxRunner(path, cache=tmp_path)(batch), network.infer(batch, rule)
    assert torch.equal(found.exit_index, expected.exit_index)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
