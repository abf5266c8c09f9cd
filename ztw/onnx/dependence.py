"""Find out how the values of a flat ONNX graph depend on the batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ztw.batch import InputSpec, tensors_of
from ztw.onnx.form import OURS
from ztw.onnx.graphs import axes_of, reads

FEW, MORE = 2, 3  # batch sizes; not 1, which many operations expand
SEQUENCES = ("SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Dependence:
    """The nodes and weights of a flat graph, and how its values depend on the batch.

    A value in neither `axes` nor `sizes` is the same for every batch, e.g. a mask that depends on the length of a text.

    Args:
        nodes: in order. The number of samples comes from `Shape` nodes of the first input only.
        weights: by name.
        axes: value that depends on the samples -> the axis with one entry per sample; None if there is none.
        sizes: values that depend on the number of samples, but on nothing else of them.
    """

    nodes: Sequence[NodeProto]
    weights: Mapping[str, TensorProto]
    axes: Mapping[str, int | None]
    sizes: Collection[str]


def alike(flat: ModelProto) -> Dependence:
    """Return a flat graph for batches of one size: none of its values depends on the batch."""
    weights = {tensor.name: tensor for tensor in flat.graph.initializer}
    return Dependence(list(flat.graph.node), weights, {}, ())


def dependence(flat: ModelProto, inputs: InputSpec) -> Dependence:
    """Follow the data through a flat graph.

    The axis of the batch is the one that grows with it between two runs of the graph, because shape inference does not
    know all shapes.
    """
    flow = _Flow(flat, inputs)
    for node in flat.graph.node:
        if node.op_type == "Shape" and flow.axes.get(node.input[0]) is not None:
            for part in flow.by_axis(node):
                flow.take(part)
        else:
            flow.take(node)
    return Dependence(flow.nodes, flow.weights, flow.axes, flow.sizes)


class _Flow:
    """The nodes that were followed so far, see `Dependence`."""

    def __init__(self, flat: ModelProto, inputs: InputSpec) -> None:
        self.few, self.more = _shapes(flat, inputs, (FEW, MORE))
        self.counted = inputs.names[0]
        self.nodes: list[NodeProto] = []
        self.weights = {tensor.name: tensor for tensor in flat.graph.initializer}
        self.static = {item.name: item.type.tensor_type.shape.dim for item in flat.graph.value_info}
        self.axes: dict[str, int | None] = dict.fromkeys(inputs.names, 0)
        self.sizes: set[str] = set()

    def take(self, node: NodeProto) -> None:
        """Add a node, and find out what its outputs depend on."""
        self.nodes.append(node)
        outputs, read = [name for name in node.output if name], reads(node)
        if node.op_type == "Shape" and read[0] in self.axes:
            if not self._same_shape(node):
                merged = self.axes[read[0]] is None
                self.axes.update(dict.fromkeys(outputs, None)) if merged else self.sizes.update(outputs)
        elif any(name in self.axes for name in read):
            self.axes.update({name: self._axis(name) for name in outputs})
        elif any(name in self.sizes for name in read):
            self.sizes.update(outputs)

    def _axis(self, name: str) -> int | None:
        few, more = self.few.get(name, ()), self.more.get(name, ())
        if len(few) != len(more):
            return None
        grown = [axis for axis, pair in enumerate(zip(few, more, strict=True)) if pair[0] != pair[1]]
        return grown[0] if len(grown) == 1 and (few[grown[0]], more[grown[0]]) == (FEW, MORE) else None

    def _same_shape(self, shape: NodeProto) -> bool:
        """Return whether the sizes that a `Shape` holds are the same for every batch."""
        few, more = (run.get(shape.input[0], ()) for run in (self.few, self.more))
        held = axes_of(shape, len(few))
        return len(few) == len(more) > 0 and all(few[axis] == more[axis] for axis in held)

    def by_axis(self, node: NodeProto) -> Iterator[NodeProto]:
        """Convert a `Shape` to a `Shape` of the first input, and nodes or weights that hold the other sizes.

        The other sizes are then the same for every batch.
        """
        (name,), (output,) = node.input, node.output
        held, axis = axes_of(node, len(self.few[name])), self.axes[name]
        if axis is None or axis not in held:
            yield node
            return
        if len(held) == 1:
            yield from self._sizes(node, output, held)
            return
        parts = {
            f"{output}/before": range(held.start, axis),
            f"{output}/batch": range(axis, axis + 1),
            f"{output}/rest": range(axis + 1, held.stop),
        }
        for part, sizes in parts.items():
            yield from self._sizes(node, part, sizes)
        yield helper.make_node(
            "Concat", [part for part, sizes in parts.items() if sizes], [output], output, axis=0
        )

    def _sizes(self, node: NodeProto, name: str, held: range) -> Iterator[NodeProto]:
        """Yield the node for some of the sizes that a `Shape` holds, or add a weight."""
        dims = self.static.get(node.input[0], [])
        if list(held) == [self.axes[node.input[0]]]:
            yield helper.make_node("Shape", [self.counted], [name], name, start=0, end=1)
        elif held and len(dims) >= held.stop and all(dims[axis].HasField("dim_value") for axis in held):
            sizes = np.array([dims[axis].dim_value for axis in held])
            self.weights[name] = numpy_helper.from_array(sizes, name)
        elif held:
            yield helper.make_node("Shape", node.input, [name], name, start=held.start, end=held.stop)


@torch.inference_mode()
def _shapes(flat: ModelProto, inputs: InputSpec, counts: Sequence[int]) -> list[dict[str, Shape]]:
    """Run a graph on batches of these sizes; return the shapes of all its tensors in each run."""
    import onnxruntime

    model = ModelProto()
    model.CopyFrom(flat)
    found = [
        name for node in flat.graph.node if node.op_type not in SEQUENCES for name in node.output if name
    ]
    names = [*inputs.names, *found]
    del model.graph.output[:]
    for name in names:
        shape = f"{OURS}shape/{name}"
        model.graph.node.append(helper.make_node("Shape", [name], [shape], shape))
        model.graph.output.append(ValueInfoProto(name=shape))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    runs = []
    for count in counts:
        tensors = tensors_of(inputs.sample(count))
        given = {name: tensor.numpy() for name, tensor in zip(inputs.names, tensors, strict=True)}
        shapes = session.run(None, given)
        runs.append({name: tuple(shape.tolist()) for name, shape in zip(names, shapes, strict=True)})
    return runs
