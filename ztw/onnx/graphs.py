"""Read ONNX graphs."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, NodeProto


def reads(node: NodeProto) -> list[str]:
    """Return the names that a node reads, also in the graphs inside it."""
    inner = [name for graph in inner_graphs(node) for part in graph.node for name in reads(part)]
    return [name for name in (*node.input, *inner) if name]


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs inside a node, e.g. the branches of an `If`."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g


def axes_of(node: NodeProto, rank: int) -> range:
    """Return the axes whose sizes a `Shape` of a value with `rank` axes holds."""
    given = {item.name: item.i for item in node.attribute}
    return range(*slice(given.get("start", 0), given.get("end", rank)).indices(rank))
