"""Export a model or a part of it by torch.export, to graphs of ATen operations.

torch.export follows any forward that does not depend on the values of tensors. It sees F.dropout, BatchNorm and
branches on `self.training` as they are in each mode.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from ztw.batch import Batch, InputSpec, tensors_of
from ztw.errors import ZtwError
from ztw.models.exported import ExportedPart, aten

DROPOUTS = (
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.feature_dropout_.default,
)
ROWS = 3  # batch size of an export; torch.export makes a constant of 1
Ends = list[fx.Node]


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
class Program:
    """A model in one mode.

    Args:
        graph: one placeholder per input, the weights as get_attr, the logits as output.
        tensors: weights, buffers and constants by the model's own names.
        ends: node of each marked module's output, in the order of computation.
        order: number of the marked module of each end.
    """

    graph: fx.Graph
    tensors: dict[str, Tensor]
    ends: Ends
    order: list[int]


class _Flat(nn.Module):
    """Calls a model with the flat tensors of a batch, and returns its logits."""

    def __init__(self, model: nn.Module, inputs: InputSpec) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *tensors: Tensor) -> Any:
        return first_tensor(call(self.model, self.inputs.build(tensors)))


class _FlatPart(_Flat):
    """Calls a part with the flat tensors of a state, and returns the tensors of the next state."""

    def forward(self, *tensors: Tensor) -> Any:
        return tensors_of(self.model(self.inputs.build(tensors)))


def call(model: nn.Module, batch: Batch) -> Any:
    """Call a model on a batch: a dict by keywords, a tuple by position."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def first_tensor(output: Any) -> Any:
    """Return the logits or the features in what a module returns: `logits`, or the first tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        return output["logits"] if "logits" in output else next(iter(output.values()), None)
    if getattr(output, "logits", None) is not None:
        return output.logits
    return first_tensor(output[0]) if isinstance(output, tuple | list) and output else output


def _marked(number: int, module: nn.Module, given: Any, output: Any) -> Any:
    """Forward hook: mark the first tensor of an output."""
    if isinstance(output, Tensor):
        return mark(output, number)
    if isinstance(output, dict):  # also Hugging Face's ModelOutput
        name = next(iter(output))
        output[name] = _marked(number, module, given, output[name])
        return output
    if isinstance(output, tuple | list) and output:
        items = [_marked(number, module, given, output[0]), *output[1:]]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output


def export(
    model: nn.Module, inputs: InputSpec, marked: Sequence[nn.Module] = (), training: bool = False
) -> Program:
    """Export a model in one mode, with any batch size.

    A second axis of integers, e.g. the length of a text, may have any size if the model allows it.

    Args:
        model: what it returns is reduced to the logits. Its mode changes.
        inputs: what it takes.
        marked: modules whose ends are recorded.
        training: the mode.

    Raises:
        CannotExportError: with torch.export's reason.
    """
    sample = tensors_of(inputs.sample(ROWS, next(model.parameters(), torch.empty(0))))
    free = [range(1, len(item.shape) + 1) if item.dtype == "int64" else () for item in inputs.inputs]
    hooks = [module.register_forward_hook(partial(_marked, number)) for number, module in enumerate(marked)]
    try:
        program = _exported(_Flat(model.train(training), inputs), sample, free)
    finally:
        for hook in hooks:
            hook.remove()
    return program


def export_part(part: nn.Module, state: Any, trains: bool = True) -> ExportedPart:
    """Return a stage or a classifier as an ExportedPart with the same weights.

    Args:
        part: the part. Its mode changes.
        state: what it takes, for a batch of at least 2 samples.
        trains: whether to export it for training, too.

    Raises:
        CannotExportError: with torch.export's reason.
    """
    if isinstance(part, ExportedPart):
        return part
    inputs = InputSpec.of_example(state)
    free = [range(1, tensor.dim()) if tensor.dim() in (2, 3) else () for tensor in tensors_of(state)]
    with torch.no_grad():
        output = part.eval()(state)
    keys = list(output) if isinstance(output, dict) else None
    programs = []
    for training in (False, True) if trains else (False,):
        try:
            flat = _FlatPart(part.train(training), inputs)
            programs.append(_exported(flat, tensors_of(state), free, keys))
        except CannotExportError:
            if not training:
                raise
    takes = inputs.names if isinstance(state, dict) else [f"x{number}" for number in range(len(inputs.names))]
    tensors = {name: tensor for program in programs for name, tensor in program.tensors.items()}
    graphs = [_with_names(program.graph, takes) for program in programs]
    return ExportedPart(tensors, takes, graphs[0], graphs[1] if len(graphs) > 1 else None).train(
        part.training
    )


def _with_names(graph: fx.Graph, names: Sequence[str]) -> fx.Graph:
    """Copy a graph; name its placeholders."""
    renamed, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for name, node in zip(names, (node for node in graph.nodes if node.op == "placeholder"), strict=True):
        made[node] = renamed.placeholder(name)
    for node in graph.nodes:
        if node not in made:
            made[node] = renamed.node_copy(node, made.__getitem__)
    return renamed


def _exported(
    flat: nn.Module,
    sample: Sequence[Tensor],
    free: Sequence[Sequence[int]],
    keys: Sequence[str] | None = None,
) -> Program:
    """Export a module of flat tensors.

    Args:
        flat: in the mode to export.
        sample: its arguments.
        free: for each of them the axes, beside the first, that may have any size.
        keys: names of the outputs; None for one output.
    """
    dims = torch.export.Dim
    axes = tuple({0: dims.DYNAMIC, **dict.fromkeys(places, dims.AUTO)} for places in free)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(flat, tuple(sample), dynamic_shapes=(axes,), strict=False)
            module = program.module(check_guards=False)
    except Exception as error:  # a user's forward may raise anything
        reason = " ".join(str(error).split())
        raise CannotExportError(reason[:200] or type(error).__name__) from error
    assert isinstance(module, fx.GraphModule)
    return _cleaned(module, keys)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.export's warnings, which are for its developers."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _cleaned(module: fx.GraphModule, keys: Sequence[str] | None = None) -> Program:
    """Remove checks and marks from an exported graph, and make in-place operations functional."""
    graph, ends, order = module.graph, Ends(), list[int]()
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
                raise CannotExportError(f"its graph holds a region of its own, {name}")
            node.target = _plain_name(name)
            tensors[node.target] = value
        elif node.target == torch.ops.ztw.mark.default:
            of, number = node.args
            node.replace_all_uses_with(of)
            graph.erase_node(node)
            ends.append(of)
            order.append(number)
        elif node.target in DROPOUTS and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
            _make_functional(node, ends)
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = output.args[0]
    while isinstance(results, tuple | list) and isinstance(results[0], tuple | list):
        results = results[0]
    results = list(results) if isinstance(results, tuple | list) else [results]
    output.args = (results[0] if keys is None else dict(zip(keys, results, strict=True)),)
    graph.owning_module = None  # names of tensors are no longer those of its attributes
    graph.eliminate_dead_code()
    return Program(graph, tensors, ends, order)


def _plain_name(name: str) -> str:
    """Return the model's own name of a tensor, in letters, digits and _."""
    steps = name.removeprefix("model.").split(".")
    return ".".join("".join(char if char.isalnum() else "_" for char in step) for step in steps)


def _make_functional(node: fx.Node, ends: Ends) -> None:
    """Replace an in-place operation by the operation that returns a new value, if another reader could see the change.

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
    ):
        return
    packet = getattr(aten, name.removesuffix("_"), None)
    functional = getattr(packet, target._overloadname, None)
    if (
        functional is None
        or is_view(given)
        or len(functional._schema.arguments) != len(target._schema.arguments)
    ):
        return
    node.target = functional
    given.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and user > node)


def is_view(node: fx.Node) -> bool:
    """Return whether the result of an operation shares memory with its input."""
    if not isinstance(node.target, OpOverload):
        return False
    returned = node.target._schema.returns
    return bool(returned) and returned[0].alias_info is not None
