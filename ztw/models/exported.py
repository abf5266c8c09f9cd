"""Parts of a model as graphs of ATen operations, from torch.export: one for inference, one for training.

Both graphs share the part's weights. torch.export follows any forward that does not depend on the values of tensors.
It sees F.dropout, BatchNorm and branches on `self.training` as they are in each mode.
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

aten = torch.ops.aten
DROPOUTS = (
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.feature_dropout_.default,
)
FEATURES, MASK = "features", "attention_mask"  # of a state, see `ztw.models.backbone`
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
        or _is_view(given)
        or len(functional._schema.arguments) != len(target._schema.arguments)
    ):
        return
    node.target = functional
    given.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node and user > node)


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    returned = node.target._schema.returns
    return bool(returned) and returned[0].alias_info is not None


class ExportedPart(nn.Module):
    """A part of a model as ATen graphs. It takes the state of the part before it, or a batch.

    Args:
        tensors: weights and buffers by name; both graphs read them as get_attr.
        takes: names of the values that the part takes, in the order of the graphs' placeholders.
        in_eval: the graph for inference.
        in_training: the graph for training; None if the model cannot be exported for it.
        linear: name and module of the last layer, which is applied to what the graphs return.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        takes: Sequence[str],
        in_eval: fx.Graph,
        in_training: fx.Graph | None = None,
        linear: tuple[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.takes = tuple(takes)
        self.names = tuple(
            dict.fromkeys(name for graph in (in_eval, in_training) for name in names_in(graph))
        )
        self.eval_graph, self.training_graph = in_eval, in_training
        self.in_eval = _runner(in_eval, self.names)
        self.in_training = None if in_training is None else _runner(in_training, self.names)
        self.places = [self._hold(name, tensors[name]) for name in self.names]
        self.linear = None if linear is None else self._hold(*linear)
        self.linear_name = "" if linear is None else linear[0]

    def _hold(self, name: str, what: Tensor | nn.Module) -> tuple[dict[str, Any], str]:
        """Store a tensor or a module under a name with dots; return its dict and its key."""
        *way, last = name.split(".")
        holder: nn.Module = self
        for step in way:
            if step not in holder._modules:
                holder.add_module(step, nn.Module())
            holder = holder.get_submodule(step)
        if isinstance(what, nn.Module):
            holder.add_module(last, what)
            return holder._modules, last
        if isinstance(what, nn.Parameter):
            holder.register_parameter(last, what)
            return holder._parameters, last
        holder.register_buffer(last, what)
        return holder._buffers, last

    def forward(self, state: Batch) -> Any:
        """Compute the next state, or the logits."""
        run = self.in_training if self.training else self.in_eval
        if run is None:
            raise ZtwError(
                "the model cannot be exported in training mode; train the exits with regime='separate'"
            )
        given = [state[name] for name in self.takes] if isinstance(state, dict) else tensors_of(state)
        output = run(*[where[name] for where, name in self.places], *given)
        if self.linear is None:
            return output
        where, name = self.linear
        return where[name](output)


def names_in(graph: fx.Graph | None) -> list[str]:
    """Return the names of the tensors that a graph reads."""
    return [] if graph is None else [str(node.target) for node in graph.nodes if node.op == "get_attr"]


def _runner(graph: fx.Graph, names: Sequence[str]) -> fx.GraphModule:
    """Return a graph as a function of its tensors and its placeholders.

    Tensors are arguments, not attributes, because two modules of one part cannot share buffers.
    """
    lifted = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    of_name = {name: lifted.placeholder(f"tensor_{number}") for number, name in enumerate(names)}
    for node in graph.nodes:
        if node.op == "get_attr":
            made[node] = of_name[str(node.target)]
        else:
            made[node] = lifted.node_copy(node, made.__getitem__)
    return fx.GraphModule(nn.Module(), lifted)


def is_size(node: fx.Node) -> bool:
    """Return whether a node reads the size of an axis."""
    return node.target == aten.sym_size.int


class Cut:
    """Cuts a program at some of its ends.

    Args:
        program: the model in one mode.
        names: of the inputs.
        ends: nodes after which to cut, in the order of computation.

    Raises:
        CannotExportError: if a value that crosses a cut does not have one row per sample.
    """

    def __init__(self, program: Program, names: Sequence[str], ends: Ends) -> None:
        self.program, self.names = program, list(names)
        self.nodes = list(program.graph.nodes)
        self.place = {node: number for number, node in enumerate(self.nodes)}
        self.inputs = [node for node in self.nodes if node.op == "placeholder"]
        self.of_rows = _dependent(self.nodes)
        mask = self.names.index(MASK) if MASK in self.names else None
        self.mask = None if mask is None else self.inputs[mask]
        self.states = [self._state(end) for end in ends]

    def crossing(self, end: fx.Node) -> list[fx.Node]:
        """Return the values that depend on the samples, are computed up to `end` and are needed after it."""
        last = self.place[end]
        return [
            node
            for node in self.nodes[: last + 1]
            if node in self.of_rows and any(self.place[user] > last for user in self._users(node))
        ]

    def _users(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the users of a value; sizes are read from other values where possible."""
        for user in node.users:
            if is_size(user) or user not in self.of_rows:
                continue
            yield user

    def _state(self, end: fx.Node) -> dict[str, fx.Node]:
        """Return the values of a state by name, the features first."""
        others = [node for node in self.crossing(end) if node is not end and node is not self.mask]
        for node in others:
            value = node.meta.get("val")
            batch = self.inputs[0].meta["val"].shape[0]
            if not isinstance(value, Tensor) or not value.dim() or not same_size(value.shape[0], batch):
                raise CannotExportError(f"{node.name} crosses the cut and does not have one row per sample")
        named = {FEATURES: end}
        if self.mask is not None:
            named[MASK] = self.mask
        return {**named, **{f"value_{number}": node for number, node in enumerate(others)}}

    def part(self, number: int) -> tuple[fx.Graph, list[str]]:
        """Return the graph of a part, from cut `number` - 1 to cut `number`, and the names that it takes."""
        if number:
            given = self.states[number - 1]
            start = self.place[given[FEATURES]]
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
            values = self._copied(copier, start, self.place[state[FEATURES]], list(state.values()))
            graph.output(values[0] if len(state) == 1 else dict(zip(state, values, strict=True)))
        graph.eliminate_dead_code()
        return graph, list(given)

    def _copied(self, copier: _Copier, start: int, end: int, wanted: Sequence[Any]) -> list[Any]:
        for node in self.nodes[start + 1 : end + 1]:
            if node.op not in ("placeholder", "output") and (node in self.of_rows or _is_kept(node)):
                copier.copy(node)
        return [copier.copy(node) if isinstance(node, fx.Node) else node for node in wanted]


def _is_kept(node: fx.Node) -> bool:
    """Return whether a node matters although nothing reads it: it changes a buffer."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


class _Copier:
    """Copies nodes to the graph of a part; a value that does not depend on samples is computed again."""

    def __init__(self, graph: fx.Graph, made: dict[fx.Node, fx.Node]) -> None:
        self.graph, self.made = graph, made
        self.first = next(iter(made.values()))
        self.available = dict(made)

    def copy(self, node: fx.Node) -> Any:
        if node not in self.made:
            self.made[node] = self._size(node) if is_size(node) else self._node(node)
        return self.made[node]

    def _node(self, node: fx.Node) -> fx.Node:
        if node.op == "placeholder":
            raise CannotExportError(f"the input {node.name} is needed after a cut that does not carry it")
        copied = self.graph.node_copy(node, self.copy)
        where: list[fx.Node] = []

        def on_device(value: Any) -> Any:  # the part may move to another device
            if not isinstance(value, torch.device):
                return value
            with self.graph.inserting_before(copied):
                where.append(self.graph.call_function(getattr, (self.first, "device")))
            return where[-1]

        copied.args = fx.node.map_aggregate(copied.args, on_device)
        copied.kwargs = fx.node.map_aggregate(copied.kwargs, on_device)
        return copied

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


def _dependent(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes whose values depend on the samples, not only on weights and sizes."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or (
            not is_size(node) and any(arg in found for arg in node.all_input_nodes)
        ):
            found.add(node)
            if _is_kept(node):  # what it overwrites depends on samples, too
                found.update(_overwritten(node))
    for node in nodes:  # values that read an overwritten one
        if node not in found and not is_size(node) and any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def _overwritten(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the value that an in-place operation changes, through views."""
    given = node.args[0] if node.args else None
    while isinstance(given, fx.Node) and given.op == "call_function":
        yield given
        given = given.args[0] if _is_view(given) and given.args else None
