"""Convert parts of a model to readable JSON and back. Only listed operations are used, so a file runs no code.

A part is stored as its graphs of ATen operations (see `ztw.models.exported`), without its weights.
"""

from __future__ import annotations

import operator
import re
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from ztw.errors import ZtwError
from ztw.models.backbone import Fp32Linear
from ztw.models.exported import ExportedPart
from ztw.models.exporting import export_part

PLACE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")  # name of a tensor
OPERATION = re.compile(r"aten\.([a-z_0-9A-Z]+)\.([A-Za-z_0-9]+)")
PLAIN = (bool, int, str, type(None))
# Operations that take no tensor. Others of this kind could read files.
FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros")
OF_SIZES = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem")
}
OF_SIZES |= {"sym_not": torch.sym_not, "sym_max": torch.sym_max, "sym_min": torch.sym_min}
# Arguments that JSON lacks, by the name of their type
TYPES: dict[str, type] = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


def describe_part(part: nn.Module, state: Any) -> dict[str, Any]:
    """Convert a part without its weights to JSON.

    Args:
        part: a stage or a classifier.
        state: what it takes, for a batch of samples.

    Raises:
        ZtwError: for a part that torch.export cannot follow, and for an operation that is not listed.
    """
    part = export_part(part, state)
    tensors = {
        name: _describe_tensor(where[key]) for name, (where, key) in zip(part.names, part.places, strict=True)
    }
    for name in tensors:
        _place(name)
    last = None
    if part.linear is not None:
        where, key = part.linear
        linear = where[key]
        sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
        last = {"name": _place(part.linear_name), **sizes, "bias": linear.bias is not None}
    return {
        "takes": list(part.takes),
        "tensors": tensors,
        "in_eval": _describe_graph(part.eval_graph),
        "in_training": _describe_graph(part.training_graph),
        "linear": last,
    }


def part_from(described: dict[str, Any]) -> ExportedPart:
    """Create a part from its JSON, without its weights; raise ZtwError for an operation that is not listed."""
    tensors = {_checked_place(name): _make_tensor(item) for name, item in described["tensors"].items()}
    takes = [str(name) for name in described["takes"]]
    graphs = [
        None if item is None else _make_graph(item, takes, tensors)
        for item in (described["in_eval"], described["in_training"])
    ]
    linear = None
    if (last := described["linear"]) is not None:
        layer = Fp32Linear(int(last["in_features"]), int(last["out_features"]), bias=bool(last["bias"]))
        linear = (_checked_place(last["name"]), layer)
    if graphs[0] is None:
        raise ZtwError("in_eval: missing")
    return ExportedPart(tensors, takes, graphs[0], graphs[1], linear)


def _describe_graph(graph: fx.Graph | None) -> dict[str, Any] | None:
    nodes: list[dict[str, Any]] = []
    for node in [] if graph is None else graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            return {"nodes": nodes, "output": _encode(node.args[0])}
        nodes.append(_describe_node(node))
    return None


def _describe_node(node: fx.Node) -> dict[str, Any]:
    if node.op == "get_attr":
        return {"name": node.name, "op": "tensor", "of": _place(str(node.target))}
    if node.target is getattr and node.args[1] == "device":
        return {"name": node.name, "op": "device", "of": _encode(node.args[0])}
    called: dict[str, Any] = {"args": [_encode(arg) for arg in node.args]}
    if node.kwargs:
        called["kwargs"] = {key: _encode(value) for key, value in node.kwargs.items()}
    for name, function in OF_SIZES.items():
        if node.target is function:
            return {"name": node.name, "op": name, **called}
    if isinstance(node.target, OpOverload) and _operation(str(node.target)) is node.target:
        return {"name": node.name, "op": str(node.target), **called}
    raise ZtwError(f"the operation {node.target} cannot be saved")


def _operation(name: str) -> OpOverload | None:
    """Return the ATen operation of a name like aten.conv2d.default; None for one that is not allowed."""
    match = OPERATION.fullmatch(name)
    if match is None:
        return None
    found = getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
    if not isinstance(found, OpOverload):
        return None
    kinds = [str(argument.type) for argument in found._schema.arguments]
    return found if match[1] in FACTORIES or any("Tensor" in kind for kind in kinds) else None


def _make_graph(described: dict[str, Any], takes: list[str], tensors: dict[str, Tensor]) -> fx.Graph:
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for name in takes:
        made[name] = graph.placeholder(_checked_place(name))
    for node in described["nodes"]:
        made[node["name"]] = _make_node(graph, node, made, tensors)
    graph.output(_decode(described["output"], made))
    return graph


def _make_node(
    graph: fx.Graph, node: dict[str, Any], made: dict[str, fx.Node], tensors: dict[str, Tensor]
) -> fx.Node:
    op, name = str(node["op"]), node["name"]
    if op == "tensor":
        if node["of"] not in tensors:
            raise ZtwError(f"tensor {node['of']!r}: not in the file; known: {', '.join(tensors) or 'none'}")
        return graph.get_attr(node["of"])
    if op == "device":
        return graph.call_function(getattr, (_decode(node["of"], made), "device"))
    target = OF_SIZES.get(op) or _operation(op)
    if target is None:
        raise ZtwError(f"node {name!r}: a file may not call {op!r}")
    args = tuple(_decode(arg, made) for arg in node["args"])
    kwargs = {key: _decode(value, made) for key, value in node.get("kwargs", {}).items()}
    if not all(key.isidentifier() for key in kwargs):
        raise ZtwError(f"node {name!r}: keywords {sorted(kwargs)}, must be identifiers")
    return graph.call_function(target, args, kwargs)


def _place(name: str) -> str:
    if not PLACE.fullmatch(name):
        raise ZtwError(f"{name!r}: a name may have letters, digits, _ and - only")
    return name


def _checked_place(name: Any) -> str:
    if not isinstance(name, str) or not PLACE.fullmatch(name):
        raise ZtwError(f"{name!r}: must be names of letters, digits, _ and -, separated by dots")
    return name


def _describe_tensor(tensor: Tensor) -> dict[str, Any]:
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    return {"kind": kind, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _make_tensor(described: dict[str, Any]) -> Tensor:
    tensor = torch.zeros(described["shape"], dtype=_of_torch("dtype", described["dtype"]))
    if described["kind"] == "parameter":
        return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    return tensor


def _of_torch(kind: str, name: Any) -> Any:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, TYPES[kind]):
        raise ZtwError(f"{kind} {name!r}: must be a {kind} of torch")
    return found


def _encode(value: Any) -> Any:
    """Convert an argument to JSON. Types that JSON lacks become an object with one key, the type."""
    if isinstance(value, fx.Node):
        return {"node": value.name if value.op != "placeholder" else str(value.target)}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else {"float": str(value)}
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {str(key): _encode(item) for key, item in value.items()}}
    for name, kind in TYPES.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise ZtwError(f"{type(value).__name__} {str(value)[:40]!r}: the format cannot hold such an argument")


def _decode(value: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, made) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node" and content in made:
        return made[content]
    if kind == "dict":
        return {str(key): _decode(item, made) for key, item in content.items()}
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind in TYPES:
        return _of_torch(kind, content)
    raise ZtwError(f"argument {value}: must be a known node, a dict, a number or one of {', '.join(TYPES)}")
