"""A model as one graph of ATen operations, as `cut_graph` and exported parts need it: without checks and marks."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ztw.errors import ZtwError
from ztw.models.exported import aten

DROPOUTS = (
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.feature_dropout_.default,
)


# (input, axis of any size) -> smallest and largest size for which the graph holds
Limits = dict[tuple[int, int], tuple[int, int | None]]


def _clone(x: Tensor, number: int) -> Tensor:
    return x.clone()


# An operation that does nothing; it marks the end of a module in a graph
mark = torch.library.custom_op(
    "ztw::mark", _clone, mutates_args=(), schema="(Tensor x, int number) -> Tensor"
)


mark.register_fake(_clone)


class CannotExportError(ZtwError):
    """A model that torch.export cannot follow."""


@dataclass(frozen=True)
class End:
    """The end of a marked module in a graph.

    Args:
        of: number of the module.
        node: what it returns.
        last: the last operation that is computed before it returns.
    """

    of: int
    node: fx.Node
    last: fx.Node


@dataclass(frozen=True)
class Program:
    """A model in one mode.

    Args:
        graph: one placeholder per input, the weights as get_attr, the logits as output.
        tensors: weights, buffers and constants by the model's own names.
        ends: the ends of marked modules, in the order of computation.
        limits: of the axes that have some, beside the batch axis. One whose limits are equal has one size.
    """

    graph: fx.Graph
    tensors: dict[str, Tensor]
    ends: list[End]
    limits: Limits = field(default_factory=dict)


def cleaned(module: fx.GraphModule, keys: Sequence[str] | None, known: dict[str, Tensor]) -> Program:
    """Remove checks and marks from an exported graph, and make in-place operations functional."""
    graph, marks = module.graph, list[fx.Node]()
    tensors: dict[str, Tensor] = {}
    for node in list(graph.nodes):
        name = str(node.target)
        if node.op == "call_module" or name.startswith(("aten._assert", "aten.sym_constrain")):
            if node.users:
                raise CannotExportError(f"its graph calls {name}")
            graph.erase_node(node)
        elif node.op == "get_attr":
            value = operator.attrgetter(name)(module)
            if not isinstance(value, Tensor):
                used = " ".join(sorted({str(user.target) for user in node.users}))
                raise CannotExportError(
                    f"its forward has a region of its own ({used}), e.g. of torch.autocast"
                )
            node.target = _name_of(value, name.removeprefix("model."), {**known, **tensors})
            tensors[node.target] = value
        elif node.target == torch.ops.ztw.mark.default:
            node.replace_all_uses_with(node.args[0])
            marks.append(node)
        elif node.target in DROPOUTS and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    bases = bases_of(graph.nodes)
    for node in list(graph.nodes):
        if is_kept(node):
            _make_functional(node, bases)
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = output.args[0]
    while isinstance(results, tuple | list) and isinstance(results[0], tuple | list):
        results = results[0]
    results = list(results) if isinstance(results, tuple | list) else [results]
    output.args = (results[0] if keys is None else dict(zip(keys, results, strict=True)),)
    graph.owning_module = None  # names of tensors are no longer those of its attributes
    return Program(graph, tensors, _without_marks(graph, marks))


def _without_marks(graph: fx.Graph, marks: Sequence[fx.Node]) -> list[End]:
    """Remove marks and dead code; return the ends that are left."""
    nodes, given = list(graph.nodes), [node.args for node in marks]
    places = {node: place for place, node in enumerate(nodes)}
    for node in marks:
        graph.erase_node(node)
    graph.eliminate_dead_code()
    alive, ends = set(graph.nodes), list[End]()
    for node, (returned, number) in zip(marks, given, strict=True):
        last = next((one for one in reversed(nodes[: places[node]]) if one in alive), None)
        if last is not None and returned in alive:
            ends.append(End(number, returned, last))  # type: ignore[arg-type]
    return ends


def _name_of(value: Tensor, name: str, known: dict[str, Tensor]) -> str:
    """Return a name that no other tensor has."""
    number, free = 1, name
    while known.get(free, value) is not value:
        number += 1
        free = f"{name}_{number}"
    return free


def _make_functional(node: fx.Node, bases: dict[fx.Node, fx.Node]) -> None:
    """Replace an in-place operation by the operation that returns a new value, if nothing else reads what it changes.

    Operations on buffers, e.g. BatchNorm's counter, and on views stay as they are.
    """
    target = node.target
    assert isinstance(target, OpOverload)
    name = target._schema.name.removeprefix("aten::")
    given = node.args[0] if node.args else None
    if (
        not name.endswith("_")
        or name.startswith("_")
        or not isinstance(given, fx.Node)
        or given.op == "get_attr"
        or bases[given] is not given
    ):
        return
    packet = getattr(aten, name.removesuffix("_"), None)
    functional = getattr(packet, target._overloadname, None)
    if functional is None or len(functional._schema.arguments) != len(target._schema.arguments):
        return
    aliases = (one for one, base in bases.items() if base is given and one is not given and one < node)
    if any(user > node for one in aliases for user in one.users):  # an older view shows the change
        return
    node.target = functional
    given.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and user > node)
    for one, base in bases.items():
        if base is given and one >= node:
            bases[one] = node


def bases_of(nodes: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Return for every value the value whose memory it may share; itself for new memory."""
    bases: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        given = node.args[0] if node.args else None
        bases[node] = bases[given] if isinstance(given, fx.Node) and is_view(node) else node
    return bases


def is_kept(node: fx.Node) -> bool:
    """Return whether an operation changes one of its arguments."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def is_random(node: fx.Node) -> bool:
    """Return whether an operation draws random numbers."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def is_view(node: fx.Node) -> bool:
    """Return whether what an operation returns may share memory with its first argument."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return is_view(node.args[0])
    return isinstance(node.target, OpOverload) and "(" in str(node.target._schema).rpartition("->")[2]
