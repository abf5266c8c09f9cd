"""Partition a flat ONNX graph by exit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from onnx import NodeProto, TensorProto

from ztw.errors import ZtwError
from ztw.onnx.dependence import Dependence
from ztw.onnx.form import Form, answer, score
from ztw.onnx.graphs import reads

# Operations that cost little, so that an exit may compute them again
RESHAPING = {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Transpose", "Unsqueeze"}
PICKING = {"Concat", "Gather", "Pad", "Slice", "Split", "Tile", "Where"}
COMPARING = {"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Not", "Or"}
CHEAP = RESHAPING | PICKING | COMPARING | {"Add", "Div", "Mul", "Neg", "Sub"}


@dataclass
class Step:
    """The nodes that one exit adds, in order, and the weights that no earlier exit uses."""

    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)


@dataclass
class Steps:
    """A flat graph partitioned by exit.

    Args:
        form: its form.
        steps: one per exit.
        crossing: for each of the first K - 1 exits, the values that later exits need from here or from before, and the
            axis of each that has one entry per sample.
        repeated: value -> its node. Each exit computes these values again for the remaining samples: those that depend
            only on the batch size, and those without an axis of the samples, e.g. one of samples times heads.
    """

    form: Form
    steps: list[Step]
    crossing: list[Mapping[str, int]]
    repeated: dict[str, NodeProto]


def split(graph: Dependence, form: Form) -> Steps:
    """Assign each node of a flat graph to the first exit that needs it.

    Weights belong to the first exit that uses them, because ONNX Runtime optimises only convolutions with weights of
    their own graph. With weights outside, they take 1.5 times as long.

    Raises:
        ZtwError: for a value that cannot be restricted to the remaining samples.
    """
    owner = _owners(graph, form)
    repeated, last_use = _repeated(graph, form, owner)
    steps = [Step() for _ in range(form.exits)]
    first_use: dict[str, int] = {}
    for number, exit in sorted(owner.items()):
        node = graph.nodes[number]
        if repeated.keys().isdisjoint(node.output):
            steps[exit].nodes.append(node)
        for name in reads(node):
            if name in graph.weights:
                first_use[name] = min(exit, first_use.get(name, exit))
    for name, exit in first_use.items():
        steps[exit].weights.append(graph.weights[name])
    crossing, known = list[Mapping[str, int]](), list(form.inputs.names)
    for exit in range(form.exits - 1):
        known += [name for node in steps[exit].nodes for name in node.output if name]
        axes = {name: graph.axes.get(name) for name in known if last_use.get(name, 0) > exit}
        crossing.append({name: axis for name, axis in axes.items() if axis is not None})
    return Steps(form, steps, crossing, repeated)


def _owners(graph: Dependence, form: Form) -> dict[int, int]:
    """Return for the number of each needed node the exit that computes it: the first that needs it."""
    made_by = {name: number for number, node in enumerate(graph.nodes) for name in node.output if name}
    owner: dict[int, int] = {}
    for exit in range(form.exits):
        wanted = [answer(exit), score(exit)] if exit < form.exits - 1 else [answer(exit)]
        todo = [made_by[name] for name in wanted]
        while todo:
            number = todo.pop()
            if number not in owner:
                owner[number] = exit
                todo += [made_by[name] for name in reads(graph.nodes[number]) if name in made_by]
    for number in sorted(owner):
        node = graph.nodes[number]
        (output, *_) = node.output
        if node.op_type == "Shape" and output not in graph.sizes and output not in graph.axes:
            # where the value is computed, so that it need not reach this exit for its length
            owner[number] = owner[made_by[node.input[0]]] if node.input[0] in made_by else 0
    return owner


def _repeated(
    graph: Dependence, form: Form, owner: Mapping[int, int]
) -> tuple[dict[str, NodeProto], dict[str, int]]:
    """Return the nodes to repeat, by the values they compute, and the last exit that reads each value."""
    repeated: dict[str, NodeProto] = {}
    last_use = {name(exit): exit for exit in range(form.exits) for name in (answer, score)}
    for number, exit in sorted(owner.items(), reverse=True):
        node = graph.nodes[number]
        last = max(exit, *(last_use.get(name, exit) for name in node.output))
        size = any(name in graph.sizes for name in node.output)
        if size or (last > exit and _without_axis(graph, node, [*last_use], last)):
            repeated.update({name: node for name in node.output if name})
        else:
            last = exit
        if not (size and node.input[0] == form.inputs.names[0]):  # the rows that remain are counted instead
            last_use.update({name: max(last, last_use.get(name, 0)) for name in reads(node)})
    return repeated, last_use


def _without_axis(graph: Dependence, node: NodeProto, read: Collection[str], exit: int) -> bool:
    """Return whether an output that is read has no axis of the batch.

    Raises:
        ZtwError: if it also costs too much to compute again.
    """
    found = [name for name in node.output if name in read and graph.axes.get(name, 0) is None]
    if found and node.op_type not in CHEAP:
        raise ZtwError(
            f"ONNX: {found[0]} (of a {node.op_type}) has no axis with one entry per sample, and exit {exit + 1} needs"
            " it again; a stage must return tensors (N, ...), and must not mix samples"
        )
    return bool(found)
