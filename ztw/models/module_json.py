"""Convert modules to readable JSON and back. A file can name only known classes and functions, so it runs no code.

A module of torch.nn or torchvision.ops is stored as its class and constructor arguments. Any other module is stored as
its torch.fx graph of such modules, functions of torch and methods of tensors.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ztw.errors import ZtwError
from ztw.models.backbone import Fp32Linear
from ztw.models.tracing import trace_part

OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "neg", "pos", "abs", "invert"),
    *("iadd", "isub", "imul", "itruediv", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor"),
    "getitem",
)
ATTRIBUTES = ("shape", "dtype", "device", "ndim", "T", "mT")  # attributes of tensors that a graph may read
PLACE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")  # name of a module or tensor; it becomes part of code
OURS = "ztw.Fp32Linear"
TORCHVISION = "torchvision.ops."
PLAIN = (bool, int, float, str, type(None))


class NotDescribedError(ZtwError):
    """The format cannot represent a module."""


def describe_module(module: nn.Module) -> dict[str, Any]:
    """Convert a module without its weights to JSON; raise NotDescribedError if the format cannot represent it."""
    if (name := _class_name(type(module))) is not None:
        return {"class": name, "options": _options(module)}
    if not isinstance(module, fx.GraphModule):
        module = trace_part(module)
    nodes, modules, tensors = list[Any](), dict[str, Any](), dict[str, Any]()
    for node in module.graph.nodes:
        if node.op == "output":
            return {"nodes": nodes, "output": _encode(node.args[0]), "modules": modules, "tensors": tensors}
        nodes.append(_describe_node(node))
        target = str(node.target)
        if node.op == "call_module" and target not in modules:
            part = module.get_submodule(target)
            modules[target] = _describe_part(part)
        if node.op == "get_attr":
            tensors[target] = _describe_tensor(module, target)
    raise NotDescribedError("a graph without an output")


def _describe_part(part: nn.Module) -> dict[str, Any]:
    try:
        return describe_module(part)
    except ZtwError as error:
        if isinstance(error, NotDescribedError) and _class_name(type(part)) is not None:
            raise
        raise NotDescribedError(
            f"{type(part).__name__}: must be a module of torch.nn or torchvision.ops"
        ) from error


def module_from(described: dict[str, Any]) -> nn.Module:
    """Create a module from its JSON, without its weights; raise ZtwError for a class or function that is not known."""
    if "class" in described:
        return _make(described["class"], described["options"])
    root = nn.Module()
    for place, part in described["modules"].items():
        holder, name = _holder(root, place)
        holder.add_module(name, module_from(part))
    for place, tensor in described["tensors"].items():
        _add_tensor(*_holder(root, place), tensor)
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for node in described["nodes"]:
        made[node["name"]] = _make_node(graph, node, made, described)
    graph.output(_decode(described["output"], made))
    return fx.GraphModule(root, graph)


def _class_name(kind: type[nn.Module]) -> str | None:
    """Return the name of a class of modules in a file; None for a class that is not known."""
    if kind is Fp32Linear:
        return OURS
    if kind.__module__.startswith("torch.nn.modules.") and getattr(nn, kind.__name__, None) is kind:
        return None if issubclass(kind, nn.Sequential) else f"torch.nn.{kind.__name__}"
    if kind.__module__.startswith(TORCHVISION):
        import torchvision

        if getattr(torchvision.ops, kind.__name__, None) is kind:
            return f"{TORCHVISION}{kind.__name__}"
    return None


def _class_of(name: Any) -> type[nn.Module]:
    kind: Any = None
    if name == OURS:
        return Fp32Linear
    if isinstance(name, str) and re.fullmatch(r"torch\.nn\.[A-Z]\w*", name):
        kind = getattr(nn, name.rpartition(".")[2], None)
    elif isinstance(name, str) and re.fullmatch(r"torchvision\.ops\.[A-Z]\w*", name):
        import torchvision

        kind = getattr(torchvision.ops, name.rpartition(".")[2], None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module) and _class_name(kind) == name):
        raise ZtwError(f"module {name!r}: must be a class of torch.nn or torchvision.ops")
    return kind


def _options(module: nn.Module) -> dict[str, Any]:
    """Return the arguments of a module's constructor that differ from the defaults, read from its attributes."""
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variable or name in ("self", "device", "dtype") or name.startswith("_"):
            continue
        found, default = _option(module, name), parameter.default
        if found is inspect.Parameter.empty:
            if default is not inspect.Parameter.empty:
                continue
            raise NotDescribedError(
                f"{type(module).__name__}: has no attribute {name} for its argument {name}"
            )
        listed = list(found) if isinstance(found, tuple) else found
        if found != default and not (isinstance(listed, list) and listed and set(listed) == {default}):
            options[name] = _encode(listed)
    return options


def _option(module: nn.Module, name: str) -> Any:
    if isinstance(module, nn.TransformerEncoderLayer):
        return _layer_option(module, name)
    if isinstance(module, nn.MultiheadAttention) and name in ("bias", "add_bias_kv"):
        return (module.in_proj_bias if name == "bias" else module.bias_k) is not None
    found = getattr(module, name, inspect.Parameter.empty)
    return found is not None if name == "bias" and not isinstance(found, bool) else found


def _layer_option(layer: nn.TransformerEncoderLayer, name: str) -> Any:
    attention = layer.self_attn
    known: dict[str, Any] = {
        "d_model": attention.embed_dim,
        "nhead": attention.num_heads,
        "dim_feedforward": layer.linear1.out_features,
        "dropout": layer.dropout.p,
        "layer_norm_eps": layer.norm1.eps,
        "batch_first": attention.batch_first,
        "norm_first": layer.norm_first,
        "bias": layer.linear1.bias is not None,
    }
    if name != "activation":
        return known.get(name, inspect.Parameter.empty)
    for text, function, kind in (("relu", F.relu, nn.ReLU), ("gelu", F.gelu, nn.GELU)):
        if layer.activation is function or type(layer.activation) is kind:
            return text
    raise NotDescribedError("TransformerEncoderLayer: its activation must be relu or gelu")


def _make(name: Any, options: dict[str, Any]) -> nn.Module:
    kind = _class_of(name)
    try:
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        return kind(**given)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ZtwError(f"module {name!r}: invalid options {options} ({error})") from error


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Return the functions that a graph may call, by name: Python's operators, and torch's functions of tensors."""
    known = {f"operator.{name}": getattr(operator, name) for name in OPERATORS}
    overridable = {
        id(f) for functions in torch.overrides.get_overridable_functions().values() for f in functions
    }
    for label, home in (("torch", torch), ("torch.nn.functional", F)):
        for name in dir(home):
            function = getattr(home, name)
            if not name.startswith("_") and id(function) in overridable:
                known[f"{label}.{name}"] = function
    return {**known, "getattr": getattr, "torch._assert": torch._assert}


@cache
def _function_names() -> dict[Callable[..., Any], str]:
    return {function: name for name, function in reversed(_functions().items())}


@cache
def _methods() -> frozenset[str]:
    """Return the methods of tensors that a graph may call."""
    overridable = torch.overrides.get_overridable_functions()[Tensor]
    names = {getattr(method, "__name__", "") for method in overridable}
    return frozenset(name for name in names if not name.startswith("_") and hasattr(Tensor, name))


def _describe_node(node: fx.Node) -> dict[str, Any]:
    if node.op == "placeholder":
        return {"name": node.name, "op": "input"}
    if node.op == "get_attr":
        return {"name": node.name, "op": "tensor", "of": _place(node.target)}
    called: dict[str, Any] = {"args": [_encode(arg) for arg in node.args]}
    if node.kwargs:
        called["kwargs"] = {key: _encode(value) for key, value in node.kwargs.items()}
    if node.op == "call_module":
        return {"name": node.name, "op": "module", "of": _place(node.target), **called}
    if node.op == "call_method":
        if node.target not in _methods():
            raise NotDescribedError(f"{node.target}: must be a public method of tensors")
        return {"name": node.name, "op": "method", "of": node.target, **called}
    name = _function_names().get(node.target) if isinstance(node.target, Callable) else None  # type: ignore[arg-type]
    if name is None or (name == "getattr" and node.args[1] not in ATTRIBUTES):
        raise NotDescribedError(
            f"{getattr(node.target, '__name__', node.target)}: must be a function of torch"
        )
    return {"name": node.name, "op": "function", "of": name, **called}


def _make_node(
    graph: fx.Graph, node: dict[str, Any], made: dict[str, fx.Node], described: dict[str, Any]
) -> fx.Node:
    op, of, name = node["op"], str(node.get("of")), node["name"]
    if op == "input":
        return graph.placeholder("x")
    if op == "tensor":
        if of not in described["tensors"]:
            raise ZtwError(
                f"tensor {of!r}: not in the file; known: {', '.join(described['tensors']) or 'none'}"
            )
        return graph.get_attr(of)
    args = tuple(_decode(arg, made) for arg in node["args"])
    kwargs = {key: _decode(value, made) for key, value in node.get("kwargs", {}).items()}
    if not all(key.isidentifier() for key in kwargs):
        raise ZtwError(f"node {name!r}: keywords {sorted(kwargs)}, must be identifiers")
    if op == "module" and of in described["modules"]:
        return graph.call_module(of, args, kwargs)
    if op == "method" and of in _methods():
        return graph.call_method(of, args, kwargs)
    if op == "function" and of in _functions():
        if of == "getattr" and (len(args) != 2 or args[1] not in ATTRIBUTES or kwargs):
            raise ZtwError(
                f"node {name!r}: reads {args[1:]} of a tensor, must be one of {', '.join(ATTRIBUTES)}"
            )
        return graph.call_function(_functions()[of], args, kwargs)
    raise ZtwError(f"node {name!r}: a file may not call the {op} {of!r}")


def _place(target: Any) -> str:
    if not PLACE.fullmatch(str(target)):
        raise NotDescribedError(f"{target!r}: a name may have letters, digits and _ only")
    return str(target)


def _holder(root: nn.Module, place: str) -> tuple[nn.Module, str]:
    """Return the module that holds a dotted name (created if missing), and the last part of the name."""
    if not PLACE.fullmatch(place):
        raise ZtwError(f"{place!r}: must be names of letters, digits and _, separated by dots")
    *way, name = place.split(".")
    for step in way:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    return root, name


def _describe_tensor(module: nn.Module, target: str) -> dict[str, Any]:
    holder, _, name = target.rpartition(".")
    tensor = getattr(module.get_submodule(holder), name)
    if not isinstance(tensor, Tensor):
        raise NotDescribedError(f"{target}: must be a tensor")
    kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    return {"kind": kind, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _add_tensor(holder: nn.Module, name: str, described: dict[str, Any]) -> None:
    tensor = torch.zeros(described["shape"], dtype=_dtype(described["dtype"]))
    if described["kind"] == "parameter":
        holder.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    else:
        holder.register_buffer(name, tensor)


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise ZtwError(f"dtype {name!r}: must be a dtype of torch")
    return found


def _encode(value: Any) -> Any:
    """Convert an argument to JSON. Types that JSON lacks become an object with one key, the type."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple):  # torch.Size, too
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, slice):
        return {"slice": [_encode(item) for item in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise NotDescribedError(
        f"{type(value).__name__} {str(value)[:40]!r}: the format cannot hold such an argument"
    )


def _decode(value: Any, made: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, made) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node" and content in made:
        return made[content]
    if kind == "tuple":
        return tuple(_decode(item, made) for item in content)
    if kind == "slice":
        return slice(*(_decode(item, made) for item in content))
    if kind == "ellipsis":
        return Ellipsis
    if kind == "dtype":
        return _dtype(content)
    raise ZtwError(f"argument {value}: must be a known node, a tuple, a slice, an ellipsis or a dtype")
