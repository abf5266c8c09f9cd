"""Cut an exported graph: what crosses a cut, and the graph of each part between two cuts.

A value that depends on the samples is carried across a cut in the state. A value that depends only on weights and sizes
is computed again by each part that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ztw.models.exported import aten
from ztw.models.exporting import on_any_device
from ztw.models.graph import CannotExportError, End, Program, bases_of, is_kept, is_random

FEATURES, MASK = "features", "attention_mask"  # of a state, see `ztw.models.backbone`


def is_size(node: fx.Node) -> bool:
    """Return whether a node reads the size of an axis."""
    return node.target == aten.sym_size.int


class Cut:
    """Cuts a program at some of its ends.

    Args:
        program: the model in one mode.
        names: of the inputs.
        ends: where to cut, in the order of computation.

    Raises:
        CannotExportError: if a value that crosses a cut does not have one row per sample.
    """

    def __init__(self, program: Program, names: Sequence[str], ends: Sequence[End]) -> None:
        self.program, self.names = program, list(names)
        self.nodes = list(program.graph.nodes)
        self.place = {node: number for number, node in enumerate(self.nodes)}
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        self.bases = bases_of(self.nodes)
        self.of_rows = _dependent(self.nodes, self.bases)
        self.changes: dict[fx.Node, list[fx.Node]] = {}  # base -> in-place operations on it
        for node in filter(is_kept, self.nodes):
            self.changes.setdefault(self.bases[node], []).append(node)
        mask = self.names.index(MASK) if MASK in self.names else None
        self.mask = None if mask is None else self.inputs[mask]
        self.ends, self.states = list(ends), [self.state(end) for end in ends]

    def crossing(self, end: End) -> list[fx.Node]:
        """Return the values that depend on the samples, are computed up to `end` and are needed after it."""
        last = self.place[end.last]
        return [
            node
            for node in self.nodes[: last + 1]
            # its size alone is read from another value
            if node in self.of_rows
            and any(self.place[user] > last for user in node.users if user in self.of_rows)
        ]

    def state(self, end: End) -> dict[str, fx.Node]:
        """Return the values of a state by name, the features first.

        Raises:
            CannotExportError: for a value that does not have one row per sample.
        """
        others = [node for node in self.crossing(end) if node is not end.node and node is not self.mask]
        batches = [node.meta["val"].shape[0] for node in self.inputs]
        for node in others:
            value = node.meta.get("val")
            if (
                not isinstance(value, Tensor)
                or not value.dim()
                or not any(same_size(value.shape[0], batch) for batch in batches)
            ):
                raise CannotExportError(f"{node.name} crosses the cut and does not have one row per sample")
        named = {FEATURES: end.node}
        if self.mask is not None:
            named[MASK] = self.mask
        return {**named, **{f"value_{number}": node for number, node in enumerate(others)}}

    def part(self, number: int) -> tuple[fx.Graph, list[str]]:
        """Return the graph of a part, from cut `number` - 1 to cut `number`, and the names that it takes."""
        if number:
            given = self.states[number - 1]
            start = self.place[self.ends[number - 1].last]
        else:
            given, start = dict(zip(self.names, self.inputs, strict=True)), -1
        graph = fx.Graph()
        made = {node: graph.placeholder(name) for name, node in given.items()}
        copier = _Copier(graph, made)
        if number == len(self.states):
            (output,) = (node for node in self.nodes if node.op == "output")
            graph.output(self._copied(copier, start, len(self.nodes) - 1, [output.args[0]])[0])
        else:
            state = self.states[number]
            end = self.place[self.ends[number].last]
            values = self._copied(copier, start, end, list(state.values()))
            graph.output(values[0] if len(state) == 1 else dict(zip(state, values, strict=True)))
        graph.eliminate_dead_code()
        return on_any_device(graph), list(given)

    def _copied(self, copier: _Copier, start: int, end: int, wanted: Sequence[Any]) -> list[Any]:
        own = [
            node
            for node in self.nodes[start + 1 : end + 1]
            if node.op not in ("placeholder", "output")
            and (node in self.of_rows or (is_kept(node) and self.bases[node].op == "get_attr"))
        ]
        needed = self._needed([*own, *(node for node in wanted if isinstance(node, fx.Node))], copier, end)
        for node in self.nodes[: end + 1]:
            if node in needed:
                copier.copy(node)
        return [copier.copy(node) if isinstance(node, fx.Node) else node for node in wanted]

    def _needed(self, todo: list[fx.Node], copier: _Copier, end: int) -> set[fx.Node]:
        """Return nodes, and what they are computed from, with the in-place operations on it up to `end`."""
        found: set[fx.Node] = set()
        while todo:
            node = todo.pop()
            if node in found or node in copier.made:
                continue
            found.add(node)
            if is_size(node):
                continue
            todo += node.all_input_nodes
            base = self.bases[node]
            if base not in self.of_rows and base.op != "get_attr":
                todo += [change for change in self.changes.get(base, ()) if self.place[change] <= end]
        return found


class _Copier:
    """Copies nodes to the graph of a part; a value that does not depend on samples is computed again."""

    def __init__(self, graph: fx.Graph, made: dict[fx.Node, fx.Node]) -> None:
        self.graph, self.made = graph, made
        self.available = dict(made)

    def copy(self, node: fx.Node) -> Any:
        if node not in self.made:
            self.made[node] = self._size(node) if is_size(node) else self._node(node)
        return self.made[node]

    def _node(self, node: fx.Node) -> fx.Node:
        if node.op == "placeholder":
            raise CannotExportError(f"the input {node.name} is needed after a cut that does not carry it")
        return self.graph.node_copy(node, self.copy)

    def _size(self, node: fx.Node) -> Any:
        """Return the size of an axis, read from a value that the part has."""
        tensor, axis = node.args
        assert isinstance(tensor, fx.Node)
        if tensor in self.made:
            return self.graph.call_function(aten.sym_size.int, (self.made[tensor], axis))
        wanted = node.meta["val"]
        for known, here in self.available.items():
            value = known.meta.get("val")
            for place, side in enumerate(value.shape if isinstance(value, Tensor) else ()):
                if same_size(side, wanted):
                    return self.graph.call_function(aten.sym_size.int, (here, place))
        return self.graph.call_function(aten.sym_size.int, (self.copy(tensor), axis))


def same_size(one: Any, other: Any) -> bool:
    """Return whether two sizes are the same number or the same symbol."""
    if isinstance(one, torch.SymInt) and isinstance(other, torch.SymInt):
        return bool(one.node.expr == other.node.expr)
    return not isinstance(one, torch.SymInt) and not isinstance(other, torch.SymInt) and one == other


def _dependent(nodes: Sequence[fx.Node], bases: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """Return the nodes whose values depend on the samples or on chance, not only on weights and sizes."""
    found: set[fx.Node] = set()
    memory: set[fx.Node] = set()  # bases that such a value is written to
    before = -1
    while len(found) + len(memory) > before:
        before = len(found) + len(memory)
        for node in nodes:
            if is_size(node) or node.op in ("get_attr", "output"):
                continue
            reads = any(arg in found or bases[arg] in memory for arg in node.all_input_nodes)
            if node.op == "placeholder" or is_random(node) or reads:
                found.add(node)
                if is_kept(node) and bases[node].op != "get_attr":
                    memory.add(bases[node])
            elif bases[node] in memory:
                found.add(node)
    return found
