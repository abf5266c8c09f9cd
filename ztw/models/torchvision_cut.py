"""torchvision's classification models cut into stages by tracing: no model is written again by hand."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import fx, nn

from ztw.download import bounded_wait
from ztw.errors import ZtwError, unknown
from ztw.models.backbone import Backbone, Fp32Linear
from ztw.study.torchvision_names import TORCHVISION_BLOCKS, TORCHVISION_PREFIX

WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's name for it
WEIGHTS = ("DEFAULT", "IMAGENET1K_V1")  # torchvision's names for the best weights it has, and for its first


def cut(arch: str, classes: int, channels: int, size: int, weights: str | None = None) -> Backbone:
    """A torchvision model as a Backbone: a stage per block, the rest as its classifier.

    arch: "torchvision/" and a name of TORCHVISION_BLOCKS; channels: 3; size: side of the square input in
    pixels; weights: None (random) or one of WEIGHTS (ImageNet's, downloaded once). The last Linear is new
    unless classes is 1000. Names of weights are the model's own, below `stages.<i>.` or `classifier.`.
    Raises ZtwError for an unknown name, a size the model cannot take, or weights that cannot be had.
    """
    name = arch.removeprefix(TORCHVISION_PREFIX)
    if name not in TORCHVISION_BLOCKS:
        raise unknown("torchvision model", name, TORCHVISION_BLOCKS)
    if channels != 3:
        raise ZtwError(f"{arch}: takes images of 3 channels, not {channels}")
    if weights is not None and weights not in WEIGHTS:
        raise unknown("weights", weights, ("None", *WEIGHTS))
    try:
        model = _build(name, size, weights)
        stages, classifier = cut_model(model, arch, classes)
        return Backbone(arch, stages, classifier, (channels, size, size))
    except (AssertionError, RuntimeError) as error:  # how torch and torchvision refuse a shape
        reason = " ".join(str(error).split())[:160]
        raise ZtwError(f"{arch}: cannot take images of {size}x{size} pixels ({reason})") from error


def _build(name: str, size: int, weights: str | None) -> nn.Module:
    # a vision transformer has a weight for each position in the image
    sized: dict[str, Any] = {"image_size": size} if name.startswith("vit_") else {}
    if weights is None:
        return torchvision.models.get_model(name, weights=None, **sized)
    wanted = torchvision.models.get_model_weights(name)[weights]
    trained = wanted.meta["min_size"][0]
    if sized and size != trained:
        raise ZtwError(
            f"{TORCHVISION_PREFIX}{name}: its pretrained weights need images of {trained}x{trained}"
            f" pixels, not {size}x{size}"
        )
    with _downloading(name, wanted.url):
        return torchvision.models.get_model(name, weights=wanted, **sized)


@contextmanager
def _downloading(name: str, url: str) -> Iterator[None]:
    """Bound how long torchvision waits, and say what to do when it does not get the weights.

    torchvision checks the first 8 digits of their SHA-256. It would unpickle the file: torch is told not to.
    """
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rpartition("/")[2]
    try:
        with bounded_wait(), _weights_only():
            yield
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ZtwError(
            f"{TORCHVISION_PREFIX}{name}: no pretrained weights ({reason}); by hand: put {file} (from {url})"
            f" into {folder}"
        ) from error


@contextmanager
def _weights_only() -> Iterator[None]:
    """torch.load reads tensors alone, whatever it is asked for."""
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[WEIGHTS_ONLY]
        else:
            os.environ[WEIGHTS_ONLY] = before


def cut_model(model: nn.Module, name: str, classes: int) -> tuple[Sequence[nn.Module], nn.Module]:
    """Cut any traceable model that ends in a Linear: its stages, one per block, and its classifier.

    model: gives its modules to the result; name: for errors; classes: the last Linear is replaced by a new
    one unless it has as many outputs, and gives float32 logits.
    Raises ZtwError for a model without repeated blocks, with another last layer, or whose graph depends on
    its mode (e.g. F.dropout instead of nn.Dropout).
    """
    blocks = set(_blocks(model))
    graph, ends = _trace(model.eval(), blocks)
    if str(graph) != str(_trace(model.train(), blocks)[0]):
        raise ZtwError(f"{name}: computes differently in training, which tracing cannot follow")
    nodes = list(graph.nodes)
    image, last = nodes[0], nodes[-1].args[0]
    ends = [end for end in ends if _crossing(nodes, end) == {end}]
    if not ends:
        raise ZtwError(f"{name}: has no repeated blocks to cut it at")
    if not isinstance(last, fx.Node) or last.op != "call_module":
        raise ZtwError(f"{name}: does not end in a Linear")
    _replace_last_linear(model, str(last.target), name, classes)
    borders = [image, *ends, last]
    *stages, classifier = [_segment(model, nodes, start, end) for start, end in pairwise(borders)]
    return stages, classifier


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
    own = not type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return own and any(True for _ in module.children())


def _trace(model: nn.Module, blocks: set[nn.Module]) -> tuple[fx.Graph, list[fx.Node]]:
    """The graph of a model in its present mode, and the nodes at the end of each block, in order."""
    tracer = _Tracer(blocks)
    return tracer.trace(model), tracer.ends


class _Tracer(fx.Tracer):
    """Traces a model and notes the node at the end of each of its blocks."""

    def __init__(self, blocks: set[nn.Module]) -> None:
        super().__init__()
        self.blocks = blocks
        self.ends: list[fx.Node] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Also a module without children, e.g. StochasticDepth: traced, its `self.training` would be frozen."""
        return super().is_leaf_module(m, module_qualified_name) or not any(True for _ in m.children())

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace one module."""
        output = super().call_module(m, forward, args, kwargs)
        if m in self.blocks and isinstance(output, fx.Proxy):
            self.ends.append(output.node)
        return output


def _crossing(nodes: Sequence[fx.Node], end: fx.Node) -> set[fx.Node]:
    """The values computed up to `end` that are needed after it."""
    done = set(nodes[: nodes.index(end) + 1])
    return {node for node in done if any(user not in done for user in node.users)}


def _replace_last_linear(model: nn.Module, target: str, name: str, classes: int) -> None:
    """Put an Fp32Linear with `classes` outputs in its place, with its weights if it has as many."""
    old = model.get_submodule(target)
    if not isinstance(old, nn.Linear):
        raise ZtwError(f"{name}: ends in a {type(old).__name__}, must end in a Linear")
    new = Fp32Linear(old.in_features, classes, bias=old.bias is not None)
    if classes == old.out_features:
        new.load_state_dict(old.state_dict())
    model.set_submodule(target, new)


def _segment(model: nn.Module, nodes: Sequence[fx.Node], start: fx.Node, end: fx.Node) -> fx.GraphModule:
    """What maps the value `start` (not computed any more) to the value `end`, with the modules it needs."""
    graph = fx.Graph()
    copies = {start: graph.placeholder("x")}
    for node in nodes[nodes.index(start) + 1 : nodes.index(end) + 1]:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end])
    return fx.GraphModule(model, graph)
