"""Cut a classifier of images into stages, by tracing it with torch.fx."""

from __future__ import annotations

import copy
import difflib
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from ztw.device import check_default_dtype
from ztw.errors import ZtwError
from ztw.models.backbone import Backbone, Fp32Linear
from ztw.models.inputs import to_channels_last
from ztw.models.supported import check_supported
from ztw.models.tracing import BY_HAND, Tracing, reason, trace_both, trace_patiently

NAMED = 12  # number of modules that an error names


def as_backbone(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    at: Sequence[str] | None = None,
    stages: Sequence[nn.Module] | None = None,
    classifier: nn.Module | None = None,
) -> Backbone:
    """Cut a copy of your own classifier into stages, after which exits can be placed.

    By default, the model is cut after every block. A block is a module of several layers whose class occurs more than
    once, e.g. torchvision's BasicBlock. The backbone's logits are compared with the model's on random images.

    Args:
        model: a float32 module from images (N, C, H, W) to logits (N, classes). It must end in a Linear, and torch.fx
            must be able to trace it. It stays unchanged.
        input_shape: (channels, height, width) of the images.
        at: names of modules to cut after, instead of the blocks, e.g. ["layer1", "layer2"].
        stages: modules to apply in order, for a model that cannot be traced.
        classifier: module from the last stage's output to logits, required with `stages`.

    Returns:
        The backbone, in training mode if the model is.

    Raises:
        ZtwError: for a model that cannot be cut. The message says why and what to do.

    Example:
        >>> import torch, ztw
        >>> conv, linear = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Linear(8 * 15 * 15, 10)
        >>> model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), linear)
        >>> len(ztw.as_backbone(model, (3, 32, 32), at=["1"]).stages)
        1
    """
    check_default_dtype()
    if isinstance(model, Backbone):
        raise ZtwError("as_backbone: the model is a Backbone already; pass it to build_network")
    if not isinstance(model, nn.Module):
        raise ZtwError(f"as_backbone: {type(model).__name__}, must be a torch.nn.Module")
    shape = _image_shape(input_shape)
    if (stages is None) != (classifier is None) or (stages is not None and at is not None):
        raise ZtwError("as_backbone: stages= and classifier= must be given together, and without at=")
    if at is not None and (isinstance(at, str) or not at):
        raise ZtwError(f"as_backbone: at={at!r}, must be a list of at least one name of a module")
    name = type(model).__name__
    check_supported(model, name)
    if other := {str(part.dtype) for part in model.parameters() if part.dtype != torch.float32}:
        raise ZtwError(
            f"{name}: has weights of {', '.join(sorted(other))}, must be torch.float32; call .float() first"
        )
    try:
        copied, by_hand = copy.deepcopy((model, (list(stages or []), classifier)))
    except Exception as error:  # a user's module may hold anything
        raise ZtwError(f"{name}: cannot be copied ({reason(error)})") from error
    images, expected = _sample_logits(copied, name, shape)
    with torch.random.fork_rng(devices=[]):
        if by_hand[1] is None:
            parts, last = cut_model(copied, name, expected.shape[1], at, through=True)
        else:
            parts, last = by_hand[0], by_hand[1]
        backbone = _checked_backbone(name, parts, last, shape)
    _compare(backbone, images, expected)
    backbone.origin = {"as_backbone": {"at": None if at is None else list(at)}} if stages is None else None
    return to_channels_last(backbone.train(model.training))


def _image_shape(given: Any) -> tuple[int, int, int]:
    shape = tuple(given) if isinstance(given, Sequence) else ()
    if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ZtwError(f"input_shape {given!r}: must be (channels, height, width)")
    return shape


@torch.no_grad()
def _sample_logits(model: nn.Module, name: str, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return 3 random images, and the logits (3, classes) of the model in eval mode."""
    like = next((part for part in model.parameters() if part.is_floating_point()), torch.empty(0))
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    try:
        logits = model.eval()(images)
    except Exception as error:  # a user's forward may raise anything
        raise ZtwError(f"{name}: cannot take images (3, {str(shape)[1:]} ({reason(error)})") from error
    if not isinstance(logits, Tensor):
        raise ZtwError(
            f"{name}: returns a {type(logits).__name__}, must return logits (N, classes); wrap it in a module whose"
            " forward returns only the logits"
        )
    if logits.dim() != 2 or len(logits) != 3 or logits.shape[1] < 2:
        raise ZtwError(f"{name}: returns shape {tuple(logits.shape)} for 3 images, must be (3, classes)")
    return images, logits


def _checked_backbone(
    name: str, stages: Sequence[nn.Module], classifier: nn.Module, shape: tuple[int, int, int]
) -> Backbone:
    try:
        return Backbone(name, stages, classifier, shape)
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, ZtwError):
            raise
        raise ZtwError(f"{name}: its stages do not fit together ({reason(error)})") from error


@torch.no_grad()
def _compare(backbone: Backbone, images: Tensor, expected: Tensor) -> None:
    found = backbone.eval()(images)
    if found.shape != expected.shape:
        raise ZtwError(
            f"{backbone.arch}: the cut model returns shape {tuple(found.shape)}, the original {tuple(expected.shape)}"
        )
    scale = max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    if not difference <= 1e-3 * scale:
        raise ZtwError(
            f"{backbone.arch}: the logits of the cut model differ from the original's by up to {difference:.3g},"
            f" because it draws random numbers or computes something that tracing misses; {BY_HAND}"
        )


def cut_model(
    model: nn.Module, name: str, num_classes: int, at: Sequence[str] | None = None, through: bool = False
) -> tuple[Sequence[nn.Module], nn.Module]:
    """Cut a model that ends in a Linear into stages, one per block, and a classifier.

    Args:
        model: its modules become part of the result.
        name: name of the model, for error messages.
        num_classes: number of classes. If the last Linear has another number of outputs, a new one replaces it.
        at: see `as_backbone`.
        through: whether to trace into the user's own modules without children.

    Returns:
        The stages and the classifier.

    Raises:
        ZtwError: for a model without repeated blocks, with another last layer, or with another graph in training than
            in eval mode (e.g. F.dropout instead of nn.Dropout).
    """
    wanted = {_named(model, place, name): place for place in at} if at is not None else None
    blocks = set(_blocks(model)) if wanted is None else set(wanted)
    if through:
        graph, ends = trace_patiently(model, name, blocks)
    else:
        graph, ends = trace_both(model, name, Tracing(blocks))
    nodes = list(graph.nodes)
    image, last = nodes[0], nodes[-1].args[0]
    if wanted is None:
        cuts = [end for _, end in ends if _crossing(nodes, end) == {end}]
        if not cuts:
            raise ZtwError(
                f"{name}: has no repeated blocks to cut after; name modules with at=[...]{_suggestion(model)}"
            )
    else:
        cuts = _cuts_at(nodes, ends, wanted, name)
    while _is_identity(model, last):
        last = last.args[0]
    if not isinstance(last, fx.Node) or last.op != "call_module":
        raise ZtwError(f"{name}: does not end in a Linear; {BY_HAND}")
    cuts = [end for end in dict.fromkeys(cuts) if end is not last]
    if not cuts:
        raise ZtwError(
            f"{name}: at={list(at or [])} leaves no layer for the classifier; cut before the last layer"
        )
    _replace_last_linear(model, str(last.target), name, num_classes)
    borders = [image, *cuts, last]
    *stages, classifier = [_segment(model, nodes, start, end) for start, end in pairwise(borders)]
    return stages, classifier


def _named(model: nn.Module, place: str, name: str) -> nn.Module:
    known = {key: module for key, module in model.named_modules() if key}
    if place not in known:
        close = difflib.get_close_matches(str(place), known, 3, 0.5) or list(known)[:NAMED]
        raise ZtwError(f"{name}: at={place!r} is not a module of the model; known: {', '.join(close)}")
    return known[place]


def _is_identity(model: nn.Module, node: Any) -> bool:
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return bool(called) and type(model.get_submodule(str(node.target))) is nn.Identity


def _cuts_at(
    nodes: Sequence[fx.Node],
    ends: Sequence[tuple[nn.Module, fx.Node]],
    wanted: dict[nn.Module, str],
    name: str,
) -> list[fx.Node]:
    """Return the output nodes of the modules in `at`, in the order of computation."""
    for module, place in wanted.items():
        found = [end for called, end in ends if called is module]
        if len(found) != 1:
            times = (
                f"is called {len(found)} times"
                if found
                else "is not called by itself, because a layer around it is traced as one unit"
            )
            raise ZtwError(f"{name}: at={place!r} {times}, must be once; name another module")
        if around := _crossing(nodes, found[0]) - {found[0]}:
            around_names = ", ".join(sorted(node.name for node in around))
            raise ZtwError(
                f"{name}: at={place!r} cannot be a cut, because {around_names} bypasses it; cut where only one value"
                " continues"
            )
    return [end for _, end in ends]


def _suggestion(model: nn.Module) -> str:
    """Return the end of an error message: modules after which the model can be cut."""
    names = {module: key for key, module in model.named_modules() if key}
    try:
        graph, ends = trace_patiently(model, "", set(names))
    except ZtwError:
        return ""
    nodes, calls = list(graph.nodes), Counter(module for module, _ in ends)
    once = [
        (names[module], end) for module, end in ends if calls[module] == 1 and end is not nodes[-1].args[0]
    ]
    fit = [place for place, end in once if _crossing(nodes, end) == {end}]
    return f", e.g. of {', '.join(fit[:NAMED])}" if fit else ""


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Return the outermost composed modules whose class occurs more than once."""
    used = Counter(type(module) for module in model.modules() if _is_composed(module))

    def outermost(parent: nn.Module) -> Iterator[nn.Module]:
        for child in parent.children():
            if used[type(child)] > 1:
                yield child
            else:
                yield from outermost(child)

    return outermost(model)


def _is_composed(module: nn.Module) -> bool:
    """Return whether a module has children, and is no container or layer of torch."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return True
    own = not type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return own and any(True for _ in module.children())


def _crossing(nodes: Sequence[fx.Node], end: fx.Node) -> set[fx.Node]:
    """Return the values that stages up to `end` must pass to later stages."""
    done = set(nodes[: nodes.index(end) + 1])
    return {node for node in done if not _in_any_stage(node) and any(user not in done for user in node.users)}


def _in_any_stage(node: fx.Node) -> bool:
    """Return whether a value is a weight or the number of images, which any stage can compute itself."""
    return node.op == "get_attr" or _is_batch_size(node)


def _is_batch_size(node: fx.Node) -> bool:
    """Return whether a node is x.size(0) or x.shape[0]."""
    if node.op == "call_method" and node.target == "size":
        return tuple(node.args[1:]) == (0,) and not node.kwargs
    if node.op != "call_function" or node.target is not operator.getitem or str(node.args[1]) != "0":
        return False
    shape = node.args[0]
    if not isinstance(shape, fx.Node):
        return False
    if shape.op == "call_method":
        return shape.target == "size" and len(shape.args) == 1
    return shape.op == "call_function" and shape.target is getattr and str(shape.args[1]) == "shape"


def _replace_last_linear(model: nn.Module, target: str, name: str, num_classes: int) -> None:
    """Replace the last Linear by an Fp32Linear with `num_classes` outputs. Weights are kept if they fit."""
    old = model.get_submodule(target)
    if not isinstance(old, nn.Linear):
        raise ZtwError(f"{name}: ends in a {type(old).__name__}, must end in a Linear; or {BY_HAND}")
    new = Fp32Linear(old.in_features, num_classes, bias=old.bias is not None)
    if num_classes == old.out_features:
        new.load_state_dict(old.state_dict())
    model.set_submodule(target, new.to(old.weight.device))


def _segment(model: nn.Module, nodes: Sequence[fx.Node], start: fx.Node, end: fx.Node) -> fx.GraphModule:
    """Return the part of a graph between the values `start` and `end` as a module."""
    graph = fx.Graph()
    image = graph.placeholder("x")
    copies = {start: image}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # computed in an earlier stage
            sized = node.op != "get_attr"
            copies[node] = graph.call_method("size", (image, 0)) if sized else graph.node_copy(node)
        return copies[node]

    for node in nodes[nodes.index(start) + 1 : nodes.index(end) + 1]:
        copies[node] = graph.node_copy(node, copy_of)
    graph.output(copies[end])
    for node in reversed(graph.nodes):  # weights and batch sizes that only later stages use
        if _in_any_stage(node) and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(model, graph)
