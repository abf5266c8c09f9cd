"""Any classifier of images cut into stages by tracing it with torch.fx: no model is written again by hand."""

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

NAMED = 12  # modules an error names


def as_backbone(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    at: Sequence[str] | None = None,
    stages: Sequence[nn.Module] | None = None,
    classifier: nn.Module | None = None,
) -> Backbone:
    """A classifier of yours as a Backbone: a copy cut into stages, after each of which an exit can be placed.

    model: images (N, C, H, W) -> logits (N, classes), traceable by torch.fx and ending in a Linear; it is left as it
    is. input_shape: (C, H, W) of its images. It is cut after every block (the outermost modules of a class that it
    uses more than once), or `at` the modules of these names. Where tracing cannot follow it: stages, modules
    applied one after the other, and classifier, from the last one's output to logits.
    The result computes what the model computes, which is tried on a sample, and is in the model's mode.
    Raises ZtwError for what cannot be cut, with the reason and the remedy.
    """
    check_default_dtype()
    if isinstance(model, Backbone):
        raise ZtwError("as_backbone: is a Backbone already; give it to build_network")
    if not isinstance(model, nn.Module):
        raise ZtwError(f"as_backbone: {type(model).__name__}, must be a torch.nn.Module")
    shape = _image_shape(input_shape)
    if (stages is None) != (classifier is None) or (stages is not None and at is not None):
        raise ZtwError("as_backbone: give stages= and classifier= together and without at=")
    if at is not None and (isinstance(at, str) or not at):
        raise ZtwError(f"as_backbone: at={at!r}, must be a list of names of modules, at least one")
    name = type(model).__name__
    check_supported(model, name)
    if other := {str(part.dtype) for part in model.parameters() if part.dtype != torch.float32}:
        raise ZtwError(
            f"{name}: has weights of {', '.join(sorted(other))}, must be torch.float32; call .float() first"
        )
    try:
        copied, by_hand = copy.deepcopy((model, (list(stages or []), classifier)))
    except Exception as error:  # whatever a user's module holds
        raise ZtwError(f"{name}: cannot be copied ({reason(error)})") from error
    images, expected = _answers(copied, name, shape)
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
def _answers(model: nn.Module, name: str, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """A sample, and the logits (3, classes) of a copy of the user's model in eval mode."""
    like = next((part for part in model.parameters() if part.is_floating_point()), torch.empty(0))
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    try:
        answer = model.eval()(images)
    except Exception as error:  # whatever a user's forward raises
        raise ZtwError(f"{name}: cannot take images (3, {str(shape)[1:]} ({reason(error)})") from error
    if not isinstance(answer, Tensor):
        raise ZtwError(
            f"{name}: returns a {type(answer).__name__}, must return logits (N, classes); wrap it in a module whose"
            " forward returns them alone"
        )
    if answer.dim() != 2 or len(answer) != 3 or answer.shape[1] < 2:
        raise ZtwError(f"{name}: returns shape {tuple(answer.shape)} for 3 images, must be (3, classes)")
    return images, answer


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
    """Raise ZtwError unless the cut backbone answers as the model does."""
    found = backbone.eval()(images)
    if found.shape != expected.shape:
        raise ZtwError(
            f"{backbone.arch}: cut, it returns shape {tuple(found.shape)}, the model {tuple(expected.shape)}"
        )
    scale = max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    if not difference <= 1e-3 * scale:
        raise ZtwError(
            f"{backbone.arch}: cut, it answers something else than the model (by up to {difference:.3g}): it draws"
            f" random numbers, or computes what tracing does not see; {BY_HAND}"
        )


def cut_model(
    model: nn.Module, name: str, num_classes: int, at: Sequence[str] | None = None, through: bool = False
) -> tuple[Sequence[nn.Module], nn.Module]:
    """Cut any traceable model that ends in a Linear: its stages, one per block, and its classifier.

    model: gives its modules to the result; name: for errors; num_classes: the last Linear is replaced by a new
    one unless it has as many outputs, and gives float32 logits; at: see `as_backbone`; through: whether modules of
    the user's own without children become functions where that changes nothing between the modes.
    Raises ZtwError for a model without repeated blocks, with another last layer, or whose graph depends on
    its mode (e.g. F.dropout instead of nn.Dropout).
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
                f"{name}: has no repeated blocks to cut it at; name modules with at=[...]{_offer(model)}"
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
            f"{name}: at={list(at or [])} leaves nothing for a classifier; cut it before its last layer"
        )
    _replace_last_linear(model, str(last.target), name, num_classes)
    borders = [image, *cuts, last]
    *stages, classifier = [_segment(model, nodes, start, end) for start, end in pairwise(borders)]
    return stages, classifier


def _named(model: nn.Module, place: str, name: str) -> nn.Module:
    known = {key: module for key, module in model.named_modules() if key}
    if place not in known:
        close = difflib.get_close_matches(str(place), known, 3, 0.5) or list(known)[:NAMED]
        raise ZtwError(f"{name}: at={place!r} is no module of it; known: {', '.join(close)}")
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
    """The nodes at the ends of the modules that a user has named, in the order they are computed in."""
    for module, place in wanted.items():
        found = [end for called, end in ends if called is module]
        if len(found) != 1:
            times = (
                f"is called {len(found)} times"
                if found
                else "is not called by itself (a layer above it is whole)"
            )
            raise ZtwError(f"{name}: at={place!r} {times}, must be once; name another module")
        if around := _crossing(nodes, found[0]) - {found[0]}:
            around_names = ", ".join(sorted(node.name for node in around))
            raise ZtwError(
                f"{name}: at={place!r} cannot be a cut: {around_names} goes around it; cut where one value goes on"
            )
    return [end for _, end in ends]


def _offer(model: nn.Module) -> str:
    """Which modules it could be cut at, in words."""
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
    """The outermost instances of every class of composed modules that the model uses more than once."""
    used = Counter(type(module) for module in model.modules() if _is_composed(module))

    def outermost(parent: nn.Module) -> Iterator[nn.Module]:
        for child in parent.children():
            if used[type(child)] > 1:
                yield child
            else:
                yield from outermost(child)

    return outermost(model)


def _is_composed(module: nn.Module) -> bool:
    """Whether a module is a part with a forward of its own: neither a container nor a layer of torch."""
    if isinstance(module, nn.TransformerEncoderLayer):
        return True
    own = not type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return own and any(True for _ in module.children())


def _crossing(nodes: Sequence[fx.Node], end: fx.Node) -> set[fx.Node]:
    """The values computed up to `end` that are needed after it, those that can be had again there left out."""
    done = set(nodes[: nodes.index(end) + 1])
    return {node for node in done if not _is_anywhere(node) and any(user not in done for user in node.users)}


def _is_anywhere(node: fx.Node) -> bool:
    """Whether a value is the same in every stage: a weight, or the number of images."""
    return node.op == "get_attr" or _is_batch_size(node)


def _is_batch_size(node: fx.Node) -> bool:
    """Whether a node is x.size(0) or x.shape[0]."""
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
    """Put an Fp32Linear with `num_classes` outputs in its place, with its weights if it has as many."""
    old = model.get_submodule(target)
    if not isinstance(old, nn.Linear):
        raise ZtwError(f"{name}: ends in a {type(old).__name__}, must end in a Linear; or {BY_HAND}")
    new = Fp32Linear(old.in_features, num_classes, bias=old.bias is not None)
    if num_classes == old.out_features:
        new.load_state_dict(old.state_dict())
    model.set_submodule(target, new.to(old.weight.device))


def _segment(model: nn.Module, nodes: Sequence[fx.Node], start: fx.Node, end: fx.Node) -> fx.GraphModule:
    """What maps the value `start` (not computed any more) to the value `end`, with the modules it needs."""
    graph = fx.Graph()
    image = graph.placeholder("x")
    copies = {start: image}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # of an earlier stage
            sized = node.op != "get_attr"
            copies[node] = graph.call_method("size", (image, 0)) if sized else graph.node_copy(node)
        return copies[node]

    for node in nodes[nodes.index(start) + 1 : nodes.index(end) + 1]:
        copies[node] = graph.node_copy(node, copy_of)
    graph.output(copies[end])
    for node in reversed(graph.nodes):  # what a later stage has again
        if _is_anywhere(node) and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(model, graph)
