"""Export a model or a part of it by torch.export, to graphs of ATen operations.

torch.export follows any forward that does not depend on the values of tensors. It sees F.dropout, BatchNorm and
branches on `self.training` as they are in each mode.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ztw.batch import Batch, InputSpec, tensors_of
from ztw.models.exported import ExportedPart
from ztw.models.graph import (
    CannotExportError,
    Limits,
    Program,
    cleaned,
    mark,
)

ROWS = 3  # batch size of an export; torch.export makes a constant of 1


# What torch.export assumes about sizes. A limit, or an equality of two inputs, is no decision of the forward.
SIZE = r"L\['tensors'\]\[(\d+)\]\.size\(\)\[(\d+)\]"


NO_DECISION = re.compile(rf"{SIZE} (<=|<|>=|>|==) \d+|{SIZE} == {SIZE}")


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
    model: nn.Module,
    inputs: InputSpec,
    marked: Sequence[nn.Module] = (),
    training: bool = False,
    known: dict[str, Tensor] | None = None,
) -> Program:
    """Export a model in one mode, with any batch size.

    A second axis of integers, e.g. the length of a text, may have any size if the model allows it.

    Args:
        model: what it returns is reduced to the logits. Its mode changes.
        inputs: what it takes.
        marked: modules whose ends are recorded.
        training: the mode.
        known: tensors of the program in the other mode. Another tensor gets another name.

    Raises:
        CannotExportError: with torch.export's reason.
    """
    sample = tensors_of(inputs.sample(ROWS, next(model.parameters(), torch.empty(0))))
    free = [range(1, len(item.shape) + 1) if item.dtype == "int64" else () for item in inputs.inputs]
    hooks = [module.register_forward_hook(partial(_marked, number)) for number, module in enumerate(marked)]
    try:
        program = _exported(_Flat(model.train(training), inputs), sample, free, known=known)
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
    programs, tensors = list[Program](), dict[str, Tensor]()
    for training in (False, True) if trains else (False,):
        try:
            flat = _FlatPart(part.train(training), inputs)
            programs.append(_exported(flat, tensors_of(state), free, keys, tensors))
        except CannotExportError:
            if not training:
                raise
        else:
            tensors |= programs[-1].tensors
    takes = inputs.names if isinstance(state, dict) else [f"x{number}" for number in range(len(inputs.names))]
    graphs = [on_any_device(_with_names(program.graph, takes)) for program in programs]
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


def on_any_device(graph: fx.Graph) -> fx.Graph:
    """Replace the devices in a part's graph by the device of its first input, because the part may move."""
    first = next(node for node in graph.nodes if node.op == "placeholder")
    for node in list(graph.nodes):
        made: list[fx.Node] = []

        def replaced(value: Any, node: fx.Node = node, made: list[fx.Node] = made) -> Any:
            if not isinstance(value, torch.device):
                return value
            with graph.inserting_before(node):
                made.append(graph.call_function(getattr, (first, "device")))
            return made[-1]

        node.args = fx.node.map_aggregate(node.args, replaced)
        node.kwargs = fx.node.map_aggregate(node.kwargs, replaced)
    return graph


def _exported(
    flat: nn.Module,
    sample: Sequence[Tensor],
    free: Sequence[Sequence[int]],
    keys: Sequence[str] | None = None,
    known: dict[str, Tensor] | None = None,
) -> Program:
    """Export a module of flat tensors.

    Args:
        flat: in the mode to export.
        sample: its arguments.
        free: for each of them the axes, beside the first, that may have any size. An axis by whose size the forward
            decides stays as it is.
        keys: names of the outputs; None for one output.
        known: see `export`.
    """
    dims = torch.export.Dim
    fixed: set[tuple[int, int]] = set()
    while True:
        axes = tuple(
            {0: dims.DYNAMIC, **{axis: dims.AUTO for axis in places if (number, axis) not in fixed}}
            for number, places in enumerate(free)
        )
        try:
            with _quiet(), torch.no_grad():
                program = torch.export.export(flat, tuple(sample), dynamic_shapes=(axes,), strict=False)
                module = program.module(check_guards=False)
        except Exception as error:  # a user's forward may raise anything
            raise CannotExportError(_reason(error)) from error
        decided = _decided(program._guards_code)
        if any(axis == 0 for _, axis in decided):
            raise CannotExportError("its forward decides by the number of samples")
        if decided <= fixed:
            break
        fixed |= decided
    assert isinstance(module, fx.GraphModule)
    found = cleaned(module, keys, known or {})
    limits = _limits(found.graph, program.range_constraints)
    if any(axis == 0 for _, axis in limits):
        raise CannotExportError("its forward decides by the number of samples")
    found.limits.update(limits)
    return found


def _decided(guards: Sequence[str]) -> set[tuple[int, int]]:
    """Return (input, axis) of the sizes by which a forward decides, e.g. whether a length is even."""
    found: set[tuple[int, int]] = set()
    for guard in guards:
        sizes = {(int(number), int(axis)) for number, axis in re.findall(SIZE, guard)}
        kinds = {axis == 0 for _, axis in sizes}  # a length may be the example's batch size by chance
        if not NO_DECISION.fullmatch(guard) or len(kinds) > 1:
            found |= sizes
    return found


def _limits(graph: fx.Graph, ranges: Any) -> Limits:
    """Return the limits of the axes of a graph's inputs that may have any size within them."""
    found: Limits = {}
    for number, node in enumerate(node for node in graph.nodes if node.op == "placeholder"):
        for axis, side in enumerate(node.meta["val"].shape):
            between = ranges.get(side.node.expr) if isinstance(side, torch.SymInt) else None
            if between is None:
                continue
            least = int(between.lower) if between.lower.is_Integer else 0
            most = int(between.upper) if between.upper.is_Integer else None
            if least > 2 or most is not None:  # torch.export assumes at least 2
                found[number, axis] = (least if least > 2 else 1, most)
    return found


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "data-dependent" in text:
        return "it decides by the values of tensors"
    return text[:200] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch.export prints for its developers."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
