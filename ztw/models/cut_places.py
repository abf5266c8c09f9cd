"""Choose where to cut an exported model: after blocks, activations, layers, or the modules that a user names."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, fx, nn

from ztw.batch import InputSpec
from ztw.errors import ZtwError
from ztw.models.exporting import export
from ztw.models.graph import CannotExportError, End, Program
from ztw.models.graph_cut import Cut

NAMED = 12  # number of modules that an error names


def is_signal(end: fx.Node) -> bool:
    """Return whether a value is a signal (N, C, L), made by a 1-d convolution or pooling."""
    if end.meta["val"].dim() != 3:
        return False
    todo, done = [end], set[fx.Node]()
    while todo:
        node = todo.pop(0)
        name = str(node.target)
        if name.startswith(("aten.conv1d", "aten.conv_transpose1d", "aten.max_pool1d", "aten.avg_pool1d")):
            return True
        if name.startswith(
            ("aten.linear", "aten.layer_norm", "aten.embedding", "aten.lstm", "aten.gru", "aten.matmul")
        ):
            return False
        todo += [before for before in node.all_input_nodes if before not in done]
        done.update(todo)
    return False


def named_module(model: nn.Module, place: str, name: str) -> nn.Module:
    """Return a module by its name; raise ZtwError with similar names if there is none."""
    known = {key: module for key, module in model.named_modules() if key}
    if place not in known:
        close = difflib.get_close_matches(str(place), known, 3, 0.5) or list(known)[:NAMED]
        raise ZtwError(f"{name}: at={place!r} is not a module of the model; known: {', '.join(close)}")
    return known[place]


def candidates(model: nn.Module) -> list[list[nn.Module]]:
    """Return groups of modules to cut after: blocks, else activations, else layers with weights."""
    modules = list(model.modules())
    activations = [part for part in modules if type(part).__module__ == "torch.nn.modules.activation"]
    layers = [part for part in modules if any(True for _ in part.parameters(recurse=False))]
    repeated = Counter(map(type, layers))
    groups = [list(_blocks(model)), activations, [part for part in layers if repeated[type(part)] > 1]]
    return [group for group in groups if group] or [[]]


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Return the outermost instances of every class of composed modules that the model uses more than once."""
    used = Counter(type(module) for module in model.modules() if _is_composed(module))

    def outermost(parent: nn.Module) -> Iterator[nn.Module]:
        for child in parent.children():
            if used[type(child)] > 1:
                yield child
            else:
                yield from outermost(child)

    return outermost(model)


def _is_composed(module: nn.Module) -> bool:
    """Return whether a module has children and its own forward: it is neither a container nor a layer of torch."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return True
    layers = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules.")]
    return layers == [nn.Module] and any(True for _ in module.children())


def ends_of(program: Program, inputs: InputSpec) -> list[End]:
    """Return the ends of marked modules after which the whole computation continues from their output, in order.

    A layer with weights follows each of them.
    """
    calls = Counter(end.of for end in program.ends)
    cut = Cut(program, inputs.names, [])
    light = _without_weights(cut)
    readers = [reader for node in cut.nodes if node.op == "get_attr" for reader in node.users]
    return _unique(
        end
        for end in program.ends
        if calls[end.of] == 1
        and _is_inner(cut, end.node)
        and any(reader > end.last for reader in readers)
        and set(cut.crossing(end)) - {end.node} <= light
    )


def _unique(ends: Iterable[End]) -> list[End]:
    """Return the first end of every value."""
    found: dict[fx.Node, End] = {}
    for end in ends:
        found.setdefault(end.node, end)
    return list(found.values())


def _without_weights(cut: Cut) -> set[fx.Node]:
    """Return the values that are computed from integers or a mask without any weight, e.g. the mask that blocks add."""
    found: set[fx.Node] = set()
    for node in cut.nodes:
        if node.op == "placeholder":
            if node is cut.mask or not node.meta["val"].is_floating_point():
                found.add(node)
        elif node.op == "call_function" and any(arg in found for arg in node.all_input_nodes):
            weights = (
                arg not in found and (arg in cut.of_rows or arg.op == "get_attr")
                for arg in node.all_input_nodes
            )
            if not any(weights):
                found.add(node)
    return found


def _is_inner(cut: Cut, end: fx.Node) -> bool:
    """Return whether a value has features of floats, depends on the samples, and is not the logits."""
    value = end.meta.get("val")
    last = cut.nodes[-1].args[0]
    return isinstance(value, Tensor) and value.is_floating_point() and end in cut.of_rows and end is not last


def ends_at(program: Program, inputs: InputSpec, at: Sequence[str], name: str) -> list[End]:
    """Return the ends of the modules in `at`, in the order of computation."""
    cut, calls = Cut(program, inputs.names, []), Counter(end.of for end in program.ends)
    for number, place in enumerate(at):
        if calls[number] != 1:
            raise ZtwError(
                f"{name}: at={place!r} is called {calls[number]} times, must be once; name another module"
            )
    for end in program.ends:
        place = at[end.of]
        if end.node is cut.nodes[-1].args[0]:
            raise ZtwError(
                f"{name}: at={place!r} leaves no layer for the classifier; cut before the last layer"
            )
        if not _is_inner(cut, end.node):
            raise ZtwError(f"{name}: at={place!r} does not return features of floats; name another module")
        try:
            cut.state(end)
        except CannotExportError as error:
            raise ZtwError(
                f"{name}: at={place!r} cannot be a cut, because {error}; name another module"
            ) from error
    return _unique(program.ends)


def offer(model: nn.Module, inputs: InputSpec) -> str:
    """Return what to do where no place to cut was found, as the end of a message."""
    names = {module: key for key, module in model.named_modules() if key}
    try:
        program = export(model, inputs, list(names))
    except CannotExportError:
        return "name modules with at=[...]"
    cut, keys = Cut(program, inputs.names, []), list(names.values())
    fit = [
        keys[end.of]
        for end in program.ends
        if _is_inner(cut, end.node) and not set(cut.crossing(end)) - {end.node}
    ]
    if fit:
        return f"name modules with at=[...], e.g. of {', '.join(fit[:NAMED])}"
    return "it needs at least two layers one after the other"
