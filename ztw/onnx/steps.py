"""Partition a flat ONNX graph by exit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ztw.onnx.form import IMAGES, answer, score


@dataclass
class Step:
    """The nodes that one exit adds, in order, and the weights that no earlier exit uses."""

    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)


@dataclass
class Steps:
    """A flat graph partitioned by exit.

    Args:
        steps: one per exit.
        crossing: for each of the first K - 1 exits, the values that later exits need from here or from before.
        repeated: value -> its node, for values that depend only on the batch size. Each exit computes them again for
            the remaining samples.
    """

    steps: list[Step]
    crossing: list[list[str]]
    repeated: dict[str, NodeProto]


def split(model: ModelProto, exits: int) -> Steps:
    """Assign each node of a flat graph to the first exit that needs it.

    Weights belong to the first exit that uses them, because ONNX Runtime optimises only convolutions with weights of
    their own graph. With weights outside, they take 1.5 times as long.
    """
    nodes = list(model.graph.node)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    repeated = _repeated(nodes, weights.keys())
    owner: dict[int, int] = {}
    for exit in range(exits):
        wanted = [answer(exit), score(exit)] if exit < exits - 1 else [answer(exit)]
        todo = [made_by[name] for name in wanted]
        while todo:
            number = todo.pop()
            if number not in owner:
                owner[number] = exit
                todo += [made_by[name] for name in reads(nodes[number]) if name in made_by]
    steps = [Step() for _ in range(exits)]
    first_use: dict[str, int] = {}
    for number, exit in sorted(owner.items()):
        if nodes[number].output[0] not in repeated:
            steps[exit].nodes.append(nodes[number])
        for name in reads(nodes[number]):
            if name in weights:
                first_use[name] = min(exit, first_use.get(name, exit))
    for name, exit in first_use.items():
        steps[exit].weights.append(weights[name])
    crossing, known = [], [IMAGES]
    for exit in range(exits - 1):
        known += [name for node in steps[exit].nodes for name in node.output if name]
        needed = {name for step in steps[exit + 1 :] for node in step.nodes for name in reads(node)}
        crossing.append([name for name in known if name in needed])
    return Steps(steps, crossing, repeated)


def only_batch_sizes(flat: ModelProto) -> None:
    """Replace each `Shape` node by nodes for the batch size and constants for the other axes, as `split` expects."""
    shapes = {item.name: item.type.tensor_type.shape.dim for item in flat.graph.value_info}
    nodes: list[NodeProto] = []
    for node in flat.graph.node:
        dims = shapes.get(node.input[0], []) if node.op_type == "Shape" else []
        whole = bool(dims) and not any(item.name == "end" or item.i for item in node.attribute)
        if not whole or not all(dim.HasField("dim_value") for dim in dims[1:]):
            nodes.append(node)
            continue
        (output,), rest = node.output, [dim.dim_value for dim in dims[1:]]
        size = f"{output}/batch" if rest else output
        nodes.append(helper.make_node("Shape", node.input, [size], size, start=0, end=1))
        if rest:
            flat.graph.initializer.append(numpy_helper.from_array(np.array(rest), f"{output}/rest"))
            nodes.append(helper.make_node("Concat", [size, f"{output}/rest"], [output], output, axis=0))
    del flat.graph.node[:]
    flat.graph.node.extend(nodes)


def reads(node: NodeProto) -> list[str]:
    """Return the names that a node reads, including those in graphs inside it."""
    inner = [name for graph in inner_graphs(node) for part in graph.node for name in reads(part)]
    return [name for name in (*node.input, *inner) if name]


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs inside a node, e.g. the branches of an `If`."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g


def _repeated(nodes: Sequence[NodeProto], weights: Collection[str]) -> dict[str, NodeProto]:
    """Return the values that depend only on the batch size, each with its node."""
    found: dict[str, NodeProto] = {}
    for node in nodes:
        attributes = {item.name: item.i for item in node.attribute if item.type == AttributeProto.INT}
        size = node.op_type == "Shape" and (attributes.get("start", 0), attributes.get("end")) == (0, 1)
        if size or all(name in found or name in weights for name in reads(node)):
            found.update(dict.fromkeys(node.output, node))
    return found
