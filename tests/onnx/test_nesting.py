"""Each value of a flat graph follows the samples, the number of samples, or neither."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto

import ztw
from ztw.batch import Input, InputSpec
from ztw.onnx.form import Form
from ztw.onnx.graphs import inner_graphs
from ztw.onnx.nesting import flatten, nest

WORDS = InputSpec((Input("x", (None,), "int64", [[5, 2, 7], [1, 9, 4], [3, 3, 8]]),))
HEAD = '<ir_version: 10, opset_import: ["" : 20]> flat (int64[batch, length] x) => (float[batch, 2] answer_0,'
HEAD += " float[batch] score_0, float[batch, 2] answer_1)"


def flat(body: str) -> ModelProto:
    """A graph of two exits. `numbers` is x (N, T) as floats; the text computes `first` and `second` (N, 2)."""
    text = f"""{HEAD} {{
        numbers = Cast<to = 1>(x)
        last = Constant<value_ints = [-1]>()
        none = Constant<value_ints = [0]>()
        one = Constant<value_ints = [1]>()
        two = Constant<value_ints = [2]>()
        huge = Constant<value_ints = [1000]>()
        to_pairs = Constant<value_ints = [-1, 2]>()
        {body}
        answer_0 = Identity(first)
        score_0 = ReduceMax<keepdims = 0>(first, last)
        answer_1 = Identity(second)
    }}"""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: ModelProto, **given: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, given)


def everywhere(model: ModelProto) -> list[NodeProto]:
    """All nodes, also those of inner graphs."""

    def within(nodes: list[NodeProto]) -> list[NodeProto]:
        deeper = [list(graph.node) for node in nodes for graph in inner_graphs(node)]
        return [*nodes, *(node for part in deeper for node in within(part))]

    return within(list(model.graph.node))


def assert_nested(model: ModelProto) -> ModelProto:
    """The nested graph, for batches, for one sample and flattened again, gives what the flat one says."""
    form = Form(2, 2, WORDS, False)
    batched, single = nest(model, form), nest(model, form, single=True)
    again = nest(flatten(batched, form), form)
    for length in (3, 2, 6):
        words = torch.randint(1, 10, (7, length), generator=torch.Generator().manual_seed(length)).numpy()
        first, scores, second = run(model, x=words)
        bound = np.sort(scores)[[3]]
        expected = np.where((scores > bound)[:, None], first, second)
        for nested in (batched, again):
            logits, exits = run(nested, x=words, bounds=bound)
            assert exits.tolist() == (scores <= bound).tolist()
            np.testing.assert_allclose(logits, expected, rtol=1e-5)
        for row in range(7):
            logits, exits = run(single, x=words[row : row + 1], bounds=bound)
            assert exits.tolist() == [scores[row] <= bound[0]]
            np.testing.assert_allclose(logits[0], expected[row], rtol=1e-5)
    return batched


def gathered(model: ModelProto) -> dict[str, int]:
    """The values that are restricted to the samples that remain, and the axis."""
    return {
        node.output[0].removeprefix("ztw:").rpartition("_")[0]: node.attribute[0].i
        for node in everywhere(model)
        if node.op_type == "Gather" and node.name.startswith("ztw:") and "bound" not in node.name
    }


def test_sizes_of_other_axes_are_computed_once():
    """Positions depend on the length alone. The number of samples is counted again at each exit."""
    nested = assert_nested(
        flat("""
        length = Shape<start = 1, end = 2>(x)
        zero = Constant<value_int = 0>()
        step = Constant<value_int = 1>()
        end = Squeeze(length)
        places = Range(zero, end, step)
        weights = Cast<to = 1>(places)
        weighted = Mul(numbers, weights)
        first = Slice(weighted, none, two, one)
        sizes = Shape(x)
        filled = Expand(weights, sizes)
        sums = Add(weighted, filled)
        shifted = Sub(numbers, sums)
        second = Slice(shifted, none, two, one)
        """)
    )
    assert gathered(nested) == {"numbers": 0, "weighted": 0}
    nodes = everywhere(nested)
    assert [node.op_type for node in nodes].count("Range") == 1
    held = {"Shape": 0, "Expand": 0}
    for node in nodes:
        if node.name.startswith("ztw-again:"):
            held[node.op_type] = held.get(node.op_type, 0) + 1
    assert held == {"Shape": 1, "Concat": 1, "Expand": 1}


def test_samples_in_another_axis():
    nested = assert_nested(
        flat("""
        turned = Transpose<perm = [1, 0]>(numbers)
        doubled = Add(turned, turned)
        back = Transpose<perm = [1, 0]>(doubled)
        first = Slice(back, none, two, one)
        squared = Mul(doubled, doubled)
        again = Transpose<perm = [1, 0]>(squared)
        second = Slice(again, none, two, one)
        """)
    )
    assert gathered(nested) == {"doubled": 1}


MERGED = """
        heads = Concat<axis = 1>(numbers, numbers)
        split = Constant<value_ints = [0, 2, -1]>()
        by_head = Reshape(heads, split)
        rows = Constant<value_ints = [-1]>()
        length = Shape<start = 1, end = 2>(x)
        to_merge = Concat<axis = 0>(rows, length)
        merged = Reshape(by_head, to_merge)
"""


def test_samples_and_heads_in_one_axis_are_merged_again():
    """No rows of such a value can be removed, so each exit computes it from one that has an axis of the samples."""
    nested = assert_nested(
        flat(f"""{MERGED}
        starts = Slice(merged, none, one, one)
        by_two = Reshape(starts, to_pairs)
        first = Identity(by_two)
        negative = Neg(merged)
        ends = Slice(negative, last, huge, one)
        second = Reshape(ends, to_pairs)
        """)
    )
    assert gathered(nested) == {"by_head": 0}


def test_a_costly_value_without_an_axis_of_the_samples_is_refused():
    form = Form(2, 2, WORDS, False)
    model = flat(f"""{MERGED}
        costly = Exp(merged)
        starts = Slice(costly, none, one, one)
        first = Reshape(starts, to_pairs)
        negative = Neg(costly)
        ends = Slice(negative, last, huge, one)
        second = Reshape(ends, to_pairs)
        """)
    with pytest.raises(
        ztw.ZtwError, match=r"costly \(of a Exp\) has no axis with one entry per sample, and exit 2"
    ):
        nest(model, form)
    nest(model, form, single=True)


def test_samples_that_depend_on_each_other_are_refused():
    model = flat("""
        mean = ReduceMean<keepdims = 1>(numbers, none)
        centred = Sub(numbers, mean)
        first = Slice(centred, none, two, one)
        shifted = Add(numbers, mean)
        second = Slice(shifted, none, two, one)
        """)
    with pytest.raises(ztw.ZtwError, match="must not mix samples"):
        nest(model, Form(2, 2, WORDS, False))


def test_an_exit_may_give_what_an_earlier_one_computed():
    nested = assert_nested(
        flat("""
        first = Slice(numbers, none, two, one)
        second = Identity(first)
        """)
    )
    assert gathered(nested) == {"first": 0}


def test_an_input_must_not_have_the_name_of_another_value():
    for name in ("bounds", "logits", "answer_1", "ztw:rows"):
        with pytest.raises(ztw.ZtwError, match=f"input '{name}': the exported graph has another value"):
            Form(2, 2, InputSpec((Input(name, (3,)),)), False)
