"""Nest a flat ONNX graph of all exits into one `If` per exit, so that it stops early, and flatten it again.

A flat graph has the network's inputs, e.g. "images". Its outputs are the logits `answer(k)` (N, C) of every exit k, and
`score(k)` (N,) of every exit but the last. A nested graph has the network's inputs and "bounds" (K - 1,). Its outputs
are "logits" (N, C) and "exit_index" (N,).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from ztw.batch import InputSpec
from ztw.onnx.dependence import alike, dependence
from ztw.onnx.form import BOUNDS, EXIT_INDEX, LOGITS, OURS, REPEATED, Form, answer, score
from ztw.onnx.graphs import inner_graphs, reads
from ztw.onnx.steps import Steps, split

IR_VERSION = 10
# Protobuf limits the nesting of messages to 100, and each exit adds three. After this many exits, the other exits
# become a function, which is stored beside the graph.
LEVELS = 30
DOMAIN = "ztw"
_OPSET = helper.make_opsetid(DOMAIN, 1)
EIGHT_BITS = {TensorProto.INT8, TensorProto.UINT8}


class _Level:
    """The nodes of one exit in the nested graph, for the samples that reach it."""

    def __init__(self, steps: Steps, exit: int) -> None:
        self.steps, self.exit, self.counted = steps, exit, steps.form.inputs.names[0]
        self.nodes: list[NodeProto] = []
        self.weights = list(steps.steps[exit].weights)
        self.names: dict[str, str] = {}  # name in the flat graph -> name here
        self.answer, self.score = answer(exit), score(exit)

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node that is not in the flat graph, with the output `output`; return the output's full name."""
        name = f"{OURS}{output}_{self.exit}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(self, value: Any, name: str) -> str:
        """Add a constant that is not in the flat graph; return its full name."""
        name = f"{OURS}{name}_{self.exit}"
        self.weights.append(numpy_helper.from_array(np.array(value), name))
        return name

    def gather(self, rows: str) -> None:
        """Select these rows of all values from the previous exit."""
        for name, axis in self.steps.crossing[self.exit - 1].items():
            before = name
            if self.exit > 1 and name in self.steps.crossing[self.exit - 2]:
                before = f"{OURS}{name}_{self.exit - 1}"
            self.names[name] = self.add("Gather", [before, rows], name, axis=axis)

    def compute(self, rows: str | None = None) -> None:
        """Add the flat graph's nodes; rows: samples that remain after the previous exit, None = all."""
        for node in self.steps.steps[self.exit].nodes:
            for name in reads(node):
                self._repeat(name, rows)
            self.nodes.append(_renamed(node, self.names))
        for name in (answer(self.exit), score(self.exit)):  # a score may depend on nothing but the batch size
            self._repeat(name, rows)
        self.answer, self.score = (
            self.names.get(name, name) for name in (answer(self.exit), score(self.exit))
        )

    def _repeat(self, name: str, rows: str | None) -> None:
        node = self.steps.repeated.get(name)
        if node is None or name in self.names:
            return
        copy = NodeProto()
        copy.CopyFrom(node)
        if node.op_type == "Shape" and node.input[0] == self.counted:
            copy.input[:] = [rows or self.counted]  # both have one row per sample
        else:
            for given in reads(node):
                self._repeat(given, rows)
            copy = _renamed(copy, self.names)
        copy.output[:] = [f"{given}@{self.exit}" for given in node.output]
        copy.name = REPEATED + copy.output[0]
        self.names.update(zip(node.output, copy.output, strict=True))
        self.nodes.append(copy)

    def stop(self) -> GraphProto:
        """Return the branch for the case that all samples leave at this exit."""
        end = _Level(self.steps, self.exit)
        end.weights = []
        return end.finish("stop", self.answer, f"{OURS}mine_{self.exit}")

    def finish(self, name: str, logits: str, exit_index: str) -> GraphProto:
        """Return this level as a graph with these outputs."""
        results, own = [], {output for node in self.nodes for output in node.output}
        for value, kind in ((logits, TensorProto.FLOAT), (exit_index, TensorProto.INT64)):
            # a graph must compute its outputs itself
            result = value if value in own else self.add("Identity", [value], f"{name}_{kind}")
            results.append(helper.make_tensor_value_info(result, kind, None))
        return helper.make_graph(self.nodes, f"{name} {self.exit + 1}", [], results, self.weights)


def _renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    for graph in inner_graphs(copy):
        parts = [_renamed(part, names) for part in graph.node]
        del graph.node[:]
        graph.node.extend(parts)
    return copy


def nest(flat: ModelProto, form: Form, single: bool = False, optimised: bool = False) -> ModelProto:
    """Convert a flat graph to a graph with early exits.

    In a graph for batches, each level passes the remaining rows to the next level, and merges the results into its own.
    If no row remains, the graph stops.

    Args:
        flat: the graph of all exits.
        form: sizes of the network.
        single: whether the graph is for one sample at a time, which needs no bookkeeping.
        optimised: whether the graph is optimised already. The outermost level then holds the weights, because ONNX
            Runtime copies a level's weights once per level around it (2.5 GB for a VGG-16 with 14 ICs). Weights of 8
            bits stay in their levels, because int8 convolutions are slow with weights from outside.

    Raises:
        ZtwError: for a value that cannot be restricted to the remaining samples.
    """
    if form.exits == 1:
        return _alone(flat, form)
    steps = split(alike(flat) if single else dependence(flat, form.inputs), form)
    outside: list[TensorProto] = []
    if optimised:
        for step in steps.steps:
            outside += [tensor for tensor in step.weights if tensor.data_type not in EIGHT_BITS]
            step.weights = [tensor for tensor in step.weights if tensor.data_type in EIGHT_BITS]
    deeper: GraphProto | None = None
    functions: list[FunctionProto] = []
    for exit in reversed(range(form.exits)):
        deeper = (_single_level if single else _batch_level)(steps, exit, deeper)
        if exit and exit % LEVELS == 0:
            functions.append(_as_function(deeper, flat))
            deeper = _call(functions[-1], deeper)
    assert deeper is not None
    deeper.initializer.extend(outside)
    return _whole(deeper, flat, form, functions)


def _as_function(graph: GraphProto, like: ModelProto) -> FunctionProto:
    """Convert a level, with all levels inside, to a function. Its arguments are the values from levels around it."""
    constants = [
        helper.make_node("Constant", [], [tensor.name], OURS + tensor.name, value=tensor)
        for tensor in graph.initializer
    ]
    nodes = [*constants, *graph.node]
    needed = dict.fromkeys(name for node in nodes for name in reads(node))
    inputs = [name for name in needed if name not in _made(nodes)]
    name, opsets = graph.name.replace(" ", "_"), [*like.opset_import, _OPSET]
    return helper.make_function(DOMAIN, name, inputs, [item.name for item in graph.output], nodes, opsets)


def _made(nodes: Iterable[NodeProto]) -> set[str]:
    """Return the names of all values in nodes and in the graphs inside them."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.output)
        for graph in inner_graphs(node):
            found |= _made(graph.node) | {tensor.name for tensor in graph.initializer}
    return found


def _call(function: FunctionProto, graph: GraphProto) -> GraphProto:
    """Return a graph that calls a function. It has the name and outputs of `graph`."""
    name = OURS + function.name
    node = helper.make_node(function.name, function.input, function.output, name, domain=DOMAIN)
    return helper.make_graph([node], graph.name, [], graph.output)


def _alone(flat: ModelProto, form: Form) -> ModelProto:
    """Return the model of a network with one exit. It has no output "exit_index"."""
    model = ModelProto()
    model.CopyFrom(flat)
    for node in model.graph.node:
        node.output[:] = [LOGITS if name == answer(0) else name for name in node.output]
    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", form.num_classes])
    )
    return model


def _single_level(steps: Steps, exit: int, deeper: GraphProto | None) -> GraphProto:
    level = _Level(steps, exit)
    level.compute()
    mine = level.constant([exit], "mine")
    if deeper is None:
        return level.finish("exit", level.answer, mine)
    bound = level.add("Gather", [BOUNDS, mine], "bound")
    leaves = level.add("Greater", [level.score, bound], "leaves")
    return level.finish("exit", *_branch(level, leaves, level.stop(), deeper))


def _batch_level(steps: Steps, exit: int, deeper: GraphProto | None) -> GraphProto:
    level, before = _Level(steps, exit), f"{OURS}rows_{exit - 1}" if exit else None
    if before:
        level.gather(before)
    level.compute(before)
    number = level.constant([exit], "number")
    size = level.add("Shape", [level.answer], "size", start=0, end=1)
    mine = level.add("Expand", [number, size], "mine")
    if deeper is None:
        return level.finish("exit", level.answer, mine)
    bound = level.add("Gather", [BOUNDS, number], "bound")
    # not LessOrEqual, because a NaN score passes no bound, as in `infer`
    stays = level.add("Not", [level.add("Greater", [level.score, bound], "leaves")], "stays")
    places = level.add("NonZero", [stays], "places")
    rows = level.add("Reshape", [places, level.constant([-1], "flat")], "rows")
    left = level.add("Cast", [level.add("Size", [rows], "left")], "any", to=TensorProto.BOOL)
    _scatter(deeper, level.answer, mine, rows, exit)
    return level.finish("exit", *_branch(level, left, deeper, level.stop()))


def _scatter(deeper: GraphProto, logits: str, exit_index: str, rows: str, exit: int) -> None:
    """Write the results of the remaining rows over those of the level around it."""
    axis = f"{OURS}axis_{exit}"
    deeper.initializer.append(numpy_helper.from_array(np.array([1]), axis))
    at = f"{OURS}at_{exit}"
    deeper.node.append(helper.make_node("Unsqueeze", [rows, axis], [at], at))
    for value, result in zip((logits, exit_index), deeper.output, strict=True):
        together = f"{OURS}all_{result.name.removeprefix(OURS)}"
        deeper.node.append(helper.make_node("ScatterND", [value, at, result.name], [together], together))
        result.name = together


def _branch(level: _Level, condition: str, then: GraphProto, otherwise: GraphProto) -> tuple[str, str]:
    """Add an `If`; return the names of its logits and exit index."""
    names = (f"{OURS}logits_{level.exit}", f"{OURS}exit_index_{level.exit}")
    node = helper.make_node(
        "If", [condition], names, f"{OURS}if_{level.exit}", then_branch=then, else_branch=otherwise
    )
    level.nodes.append(node)
    return names


def _whole(first: GraphProto, flat: ModelProto, form: Form, functions: Sequence[FunctionProto]) -> ModelProto:
    ends = ("LogSoftmax" if form.log_probabilities else "Identity", "Identity")
    outputs = [
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", form.num_classes]),
        helper.make_tensor_value_info(EXIT_INDEX, TensorProto.INT64, ["batch"]),
    ]
    for op, inner, outer in zip(ends, first.output, outputs, strict=True):
        first.node.append(helper.make_node(op, [inner.name], [outer.name], OURS + outer.name))
    inputs = _inputs(form.inputs)
    if form.exits > 1:
        inputs.append(helper.make_tensor_value_info(BOUNDS, TensorProto.FLOAT, [form.exits - 1]))
    graph = helper.make_graph(list(first.node), "early exits", inputs, outputs, list(first.initializer))
    opsets = [*flat.opset_import, *([_OPSET] if functions else [])]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ztw", functions=functions
    )


def _inputs(inputs: InputSpec) -> list[ValueInfoProto]:
    """Return the inputs of a graph that a network takes."""
    found = []
    for item in inputs.inputs:
        kind = {"int64": TensorProto.INT64, "bool": TensorProto.BOOL}.get(item.dtype, TensorProto.FLOAT)
        sides = [
            f"{item.name}_{axis}" if side is None else side for axis, side in enumerate(item.shape, start=1)
        ]
        found.append(helper.make_tensor_value_info(item.name, kind, ["batch", *sides]))
    return found


def flatten(nested: ModelProto, form: Form) -> ModelProto:
    """Convert a graph from `nest` back to the flat graph."""
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []
    names: dict[str, str] = {}  # name here -> name in the flat graph
    known: set[str] = set()
    functions = {function.name: function for function in nested.functions}

    def take(node: NodeProto) -> None:
        flat = _renamed(node, names)
        if known.isdisjoint(flat.output):
            known.update(flat.output)
            nodes.append(flat)

    def walk(graph: GraphProto | FunctionProto) -> None:
        weights.extend(tensor for tensor in _weights(graph) if not tensor.name.startswith((OURS, BOUNDS)))
        for node in graph.node:
            if node.name.startswith(REPEATED):
                copy = NodeProto()
                copy.CopyFrom(node)
                copy.output[:] = [name.rpartition("@")[0] for name in node.output]
                names.update(zip(node.output, copy.output, strict=True))
                if node.op_type == "Shape" and node.input[0].startswith(f"{OURS}rows_"):
                    copy.input[:] = [form.inputs.names[0]]
                take(copy)
            elif not node.name.startswith(OURS):
                take(node)
            elif node.op_type == "Gather":
                names[node.output[0]] = names.get(node.input[0], node.input[0])
            elif node.op_type == "If":
                walk(next(inner for inner in inner_graphs(node) if inner.name.startswith("exit")))
            elif node.domain == DOMAIN:
                walk(functions[node.op_type])

    walk(nested.graph)
    return _flat_model(nodes, weights, nested, form)


def _weights(graph: GraphProto | FunctionProto) -> list[TensorProto]:
    """Return the weights of a graph or of a function. Functions store them as constants, see `_as_function`."""
    if isinstance(graph, GraphProto):
        return list(graph.initializer)
    return [
        helper.get_node_attr_value(node, "value")
        for node in graph.node
        if node.name == f"{OURS}{node.output[0]}"
    ]


def _flat_model(
    nodes: Sequence[NodeProto], weights: Sequence[TensorProto], like: ModelProto, form: Form
) -> ModelProto:
    """Return a flat graph as a model with the operator sets of `like`."""
    outputs = []
    for exit in range(form.exits):
        outputs.append(
            helper.make_tensor_value_info(answer(exit), TensorProto.FLOAT, ["batch", form.num_classes])
        )
        if exit < form.exits - 1:  # all remaining samples leave at the last exit
            outputs.append(helper.make_tensor_value_info(score(exit), TensorProto.FLOAT, ["batch"]))
    graph = helper.make_graph(nodes, "all exits", _inputs(form.inputs), outputs, weights)
    opsets = [item for item in like.opset_import if item.domain != DOMAIN]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ztw")
