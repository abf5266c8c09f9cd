"""Trace modules with torch.fx to a graph that is valid in training and eval mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ztw.errors import ZtwError

BY_HAND = "cut it by hand with stages=[...] and classifier=..."
Ends = list[tuple[nn.Module, fx.Node]]


def reason(error: Exception) -> str:
    """Describe an error of a user's code in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


@dataclass(frozen=True)
class Tracing:
    """Settings of a trace.

    Args:
        blocks: modules whose output nodes are recorded.
        followed: modules without children to trace into.
        whole: modules with children to trace as one unit.
    """

    blocks: set[nn.Module]
    followed: set[nn.Module] = field(default_factory=set)
    whole: set[nn.Module] = field(default_factory=set)


class CannotTraceError(ZtwError):
    """A model cannot be traced. `module` is the submodule whose forward fails; None = the model itself."""

    def __init__(self, message: str, module: nn.Module | None) -> None:
        super().__init__(message)
        self.module = module


def trace_part(part: nn.Module) -> fx.GraphModule:
    """Return a stage or a classifier as a graph with the same weights; raise ZtwError if it cannot be traced."""
    traced = copy.deepcopy(part)
    graph, _ = trace_patiently(traced, type(part).__name__, set())
    return fx.GraphModule(traced, graph)


def trace_patiently(model: nn.Module, name: str, blocks: set[nn.Module]) -> tuple[fx.Graph, Ends]:
    """Trace as `trace_both` does. Modules that cannot be traced and contain no block become one unit."""
    tracing = Tracing(blocks, set(_plain(model)))
    while True:
        try:
            return trace_both(model, name, tracing)
        except CannotTraceError as error:
            at = error.module
            if at in tracing.followed:  # it can be traced alone, but not within this model
                tracing.followed.discard(at)
                continue
            alike = {module for module in model.modules() if type(module) is type(at)} - tracing.whole
            within = {part for module in alike for part in module.modules() if part is not module}
            if at is None or not alike or within & blocks:
                raise
            tracing.whole.update(alike)


def trace_both(model: nn.Module, name: str, tracing: Tracing) -> tuple[fx.Graph, Ends]:
    """Trace a model in eval and in training mode.

    Returns:
        The graph, and the blocks with their output nodes.

    Raises:
        CannotTraceError: if tracing fails, or the modes have different graphs.
        ZtwError: if the model draws random numbers or changes its own buffers.
    """
    buffers = {key: (buffer, buffer._version, buffer.clone()) for key, buffer in model.named_buffers()}
    tracer = other = Tracer(tracing)
    try:
        graph = tracer.trace(model.eval())
        constants = _take_constants(model)
        other = Tracer(tracing)
        in_training = other.trace(model.train())
        again = _take_constants(model)
    except fx.proxy.TraceError as error:
        raise CannotTraceError(
            f"{name}: its forward depends on the values of tensors, which tracing cannot follow ({reason(error)});"
            f" {BY_HAND}",
            other.failed,
        ) from error
    except Exception as error:  # a user's forward may raise anything when it is called with a proxy
        said = f"{type(error).__name__}: {reason(error)}"
        raise CannotTraceError(f"{name}: cannot be traced ({said}); {BY_HAND}", other.failed) from error
    finally:
        _take_constants(model)
        changed = _put_back(model, buffers)
    if str(graph) != str(in_training):
        node = _difference(graph, in_training)
        raise CannotTraceError(
            f"{name}: computes differently in training (at {node.name}), which tracing cannot follow; use a module"
            f" (nn.Dropout instead of F.dropout), or {BY_HAND}",
            _module_of(node, model),
        )
    if changed or any(not torch.equal(constants[key], again[key]) for key in constants):
        raise ZtwError(
            f"{name}: draws random numbers or changes its own buffers, which tracing cannot follow; use a module"
            f" without children for it, or {BY_HAND}"
        )
    for key, value in constants.items():
        setattr(model, key, value)
    return graph, tracer.ends


def _put_back(model: nn.Module, buffers: dict[str, tuple[Tensor, int, Tensor]]) -> bool:
    """Restore the buffers of a model; return whether one was changed."""
    changed = False
    for key, (buffer, version, before) in buffers.items():
        holder, _, name = key.rpartition(".")
        if getattr(model.get_submodule(holder), name) is not buffer or buffer._version != version:
            setattr(model.get_submodule(holder), name, before)
            changed = True
    return changed


def _difference(graph: fx.Graph, other: fx.Graph) -> fx.Node:
    for one, two in zip(graph.nodes, other.nodes, strict=False):
        if str(one.format_node()) != str(two.format_node()):
            return one
    return next(iter(graph.nodes))


def _module_of(node: fx.Node, model: nn.Module) -> nn.Module | None:
    """Return the module whose forward computes a node, None for the model itself."""
    places = [place for place, _ in node.meta.get("nn_module_stack", {}).values() if place != node.target]
    return model.get_submodule(places[-1]) if places and places[-1] else None


def _take_constants(model: nn.Module) -> dict[str, Tensor]:
    """Move the tensors that tracing added out of the model, so that a second trace gives its own the same names."""
    names = [key for key in vars(model) if key.startswith("_tensor_constant")]
    return {key: vars(model).pop(key) for key in names}


def _plain(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the user's own modules without children that can be traced.

    The last Linear is excluded, because it will be replaced.
    """
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    for module in model.modules():
        if module in last:
            continue
        if type(module).__module__.startswith("torch.nn") or any(True for _ in module.children()):
            continue
        try:
            trace_both(copy.deepcopy(module), "", Tracing(set()))
        except ZtwError:
            continue
        yield module


class Tracer(fx.Tracer):
    """Traces a model. Modules without children are traced as one unit, unless they are in `tracing.followed`.

    Attributes:
        ends: the blocks with their output nodes.
        failed: the module in which tracing failed.
    """

    def __init__(self, tracing: Tracing) -> None:
        super().__init__()
        self.tracing = tracing
        self.ends: Ends = []
        self.failed: nn.Module | None = None

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Trace one input. Other arguments of the forward keep their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether to trace a module as one unit."""
        if m in self.tracing.whole:
            return True
        if m in self.tracing.followed or type(m) is nn.TransformerEncoder:
            return False
        # e.g. StochasticDepth, whose forward depends on the mode
        return super().is_leaf_module(m, module_qualified_name) or not any(True for _ in m.children())

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace one module."""
        if type(m) is nn.TransformerEncoder:
            forward = _layer_by_layer(m)
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m
            raise
        if m in self.tracing.blocks and isinstance(output, fx.Proxy):
            self.ends.append((m, output.node))
        return output


def _layer_by_layer(encoder: nn.TransformerEncoder) -> Callable[..., Any]:
    """Return an encoder's forward without the fast path, which depends on the values of its input."""

    def forward(
        src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool | None = None
    ) -> Any:
        masks = {"src_mask": mask, "src_key_padding_mask": src_key_padding_mask, "is_causal": bool(is_causal)}
        given = {key: value for key, value in masks.items() if value is not None and value is not False}
        for layer in encoder.layers:
            src = layer(src, **given)
        return src if encoder.norm is None else encoder.norm(src)

    return forward
