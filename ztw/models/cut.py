"""Cut a classifier into stages, by torch.export."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ztw.batch import InputSpec, tensors_of
from ztw.device import check_default_dtype
from ztw.errors import ZtwError
from ztw.models.backbone import Backbone, Fp32Linear
from ztw.models.cut_checks import BY_HAND, compare, compare_other_sizes, trains_alike
from ztw.models.cut_places import candidates, ends_at, ends_of, is_signal, named_module, offer
from ztw.models.exported import ExportedPart, aten
from ztw.models.exporting import call, export, first_tensor
from ztw.models.graph import CannotExportError, End, Program
from ztw.models.graph_cut import Cut
from ztw.models.inputs import to_channels_last
from ztw.models.supported import check_supported, computed_weights, plain

MISTAKES = (RuntimeError, TypeError, AttributeError, IndexError, ValueError, KeyError)


def as_backbone(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    *,
    example: Any = None,
    at: Sequence[str] | None = None,
    stages: Sequence[nn.Module] | None = None,
    classifier: nn.Module | None = None,
) -> Backbone:
    """Convert a classifier of your own to a Backbone: a copy, cut into stages after which exits can be placed.

    By default, the model is cut after every block. Blocks are the outermost modules of a class that the model uses more
    than once. Without blocks, the model is cut after every activation, else after every layer with weights. The
    backbone is in the model's mode. Its logits on random inputs must agree with the model's.

    In the copy, weights under weight_norm, spectral_norm or pruning become plain weights.

    Args:
        model: a classifier whose forward torch.export can follow. It returns logits (N, classes), or an object or dict
            with `logits`. It stays unchanged.
        input_shape: shape of the inputs without the batch axis, e.g. (channels, height, width) of images.
        example: for other inputs, an example batch: a tensor, a tuple of tensors, or a dict of tensors that the forward
            takes by name, e.g. input_ids and attention_mask. A second axis of integers, e.g. the length of a text, may
            then have any size, if the model allows it.
        at: names of the modules to cut after, instead of the blocks.
        stages: to cut by hand: modules applied in order, see `Backbone`.
        classifier: with `stages`: module from what the last stage returns to logits.

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
    if (input_shape is None) == (example is None):
        raise ZtwError("as_backbone: give either input_shape=, e.g. (3, 32, 32), or example=, a batch")
    inputs = InputSpec.of_example(example) if input_shape is None else _of_shape(input_shape)
    if (stages is None) != (classifier is None) or (stages is not None and at is not None):
        raise ZtwError("as_backbone: stages= and classifier= must be given together, and without at=")
    if at is not None and (isinstance(at, str) or not at):
        raise ZtwError(f"as_backbone: at={at!r}, must be a list of at least one name of a module")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    name = type(model).__name__
    check_supported(model, name)
    if other := {str(part.dtype) for part in model.parameters() if part.dtype != torch.float32}:
        raise ZtwError(
            f"{name}: has weights of {', '.join(sorted(other))}, must be torch.float32; call .float() first"
        )
    try:
        given = (model, (list(stages or []), classifier))
        copied, by_hand = copy.deepcopy(
            given, computed_weights([model, *(stages or []), *filter(None, [classifier])])
        )
    except Exception as error:  # a user's module may hold anything
        raise ZtwError(f"{name}: cannot be copied ({_reason(error)})") from error
    copied = plain(copied)
    on_gpu = [tensor.device for tensor in copied.parameters() if tensor.is_cuda]
    with torch.random.fork_rng(devices=on_gpu[:1]):
        batch, expected = _sample_logits(copied, name, inputs)
        if by_hand[1] is None:
            backbone = _cut(copied, name, inputs, expected.shape[1], at)
            compare(backbone, batch, expected)
            compare_other_sizes(backbone, copied)
            if not trains_alike(backbone, copied, batch):
                for part in (*backbone.stages, backbone.classifier):
                    part.only_infer()
        else:
            backbone = _by_hand(name, by_hand[0], by_hand[1], inputs)
            compare(backbone, batch, expected)
    backbone.origin = {"as_backbone": {"at": None if at is None else list(at)}} if stages is None else None
    return to_channels_last(backbone.train(model.training))


def _of_shape(shape: Any) -> InputSpec:
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise ZtwError(f"input_shape {shape!r}: must be whole numbers, e.g. (channels, height, width)")
    return InputSpec.of_shape(tuple(shape))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


@torch.no_grad()
def _sample_logits(model: nn.Module, name: str, inputs: InputSpec) -> tuple[Any, Tensor]:
    """Return a batch of 3 samples, and the logits (3, classes) of the model in eval mode."""
    batch = inputs.sample(3, next((part for part in model.parameters()), None))
    try:
        logits = first_tensor(call(model.eval(), batch))
    except Exception as error:  # a user's forward may raise anything
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(batch))
        raise ZtwError(
            f"{name}: cannot take {' and '.join(inputs.names)} of {shapes} ({_reason(error)})"
        ) from error
    if not isinstance(logits, Tensor):
        raise ZtwError(
            f"{name}: returns a {type(logits).__name__}, must return logits (N, classes); wrap it in a module whose"
            " forward returns only the logits"
        )
    if logits.dim() != 2 or len(logits) != 3 or logits.shape[1] < 2:
        raise ZtwError(f"{name}: returns shape {tuple(logits.shape)} for 3 samples, must be (3, classes)")
    return batch, logits


def _by_hand(name: str, stages: Sequence[nn.Module], classifier: nn.Module, inputs: InputSpec) -> Backbone:
    try:
        return Backbone(name, stages, classifier, inputs)
    except MISTAKES as error:
        if isinstance(error, ZtwError):
            raise
        raise ZtwError(f"{name}: its stages do not fit together ({_reason(error)})") from error


def _cut(
    model: nn.Module, name: str, inputs: InputSpec, num_classes: int, at: Sequence[str] | None
) -> Backbone:
    try:
        return cut_model(model, name, inputs, num_classes, at)
    except CannotExportError as error:
        raise ZtwError(f"{name}: cannot be cut ({error}); {BY_HAND}") from error
    except MISTAKES as error:  # of a part
        if isinstance(error, ZtwError):
            raise
        raise ZtwError(f"{name}: cannot take a batch of one sample ({_reason(error)})") from error


def cut_model(
    model: nn.Module, name: str, inputs: InputSpec, num_classes: int, at: Sequence[str] | None = None
) -> Backbone:
    """Cut a model into its stages, one per block, and its classifier.

    Args:
        model: its weights become part of the result.
        name: of the model, for error messages.
        inputs: what it takes.
        num_classes: a last Linear with another number of outputs is replaced by a new one. It gives float32 logits.
        at: see `as_backbone`.

    Raises:
        ZtwError: for a model that torch.export cannot follow, or that has no place to cut.
    """
    places = {named_module(model, place, name): place for place in at or []}
    groups = [list(places)] if at is not None else candidates(model)
    marked, cuts = list[nn.Module](), list[End]()
    for marked in groups:
        try:
            program = export(model, inputs, marked)
        except CannotExportError as error:
            raise ZtwError(f"{name}: torch.export cannot follow its forward ({error}); {BY_HAND}") from error
        inputs = _with_free_axes(inputs, program)
        cuts = (
            ends_of(program, inputs) if at is None else ends_at(program, inputs, list(places.values()), name)
        )
        if cuts:
            break
    if not cuts:
        raise ZtwError(f"{name}: has no blocks to cut after; {offer(model, inputs)}")
    try:
        marked = [marked[end.of] for end in cuts]
        trained = export(model, inputs, marked, training=True, known=program.tensors)
        pair = _same(
            Cut(program, inputs.names, cuts), Cut(trained, inputs.names, _in_order(trained, len(cuts)))
        )
        if _sides(trained) != _sides(program):  # other lengths would need another graph
            pair = (pair[0], None)
    except CannotExportError:  # the backbone can stay frozen
        pair = (Cut(program, inputs.names, cuts), None)
    parts = [_part(*pair, number) for number in range(len(cuts))]
    backbone = Backbone(name, parts, _classifier(*pair, len(cuts), num_classes), inputs)
    backbone.channels_first = tuple(is_signal(end.node) for end in cuts)
    return backbone


def _in_order(trained: Program, count: int) -> list[End]:
    """Return the ends of `count` modules in their order; each module must have one."""
    ends = sorted(trained.ends, key=lambda end: end.of)
    if [end.of for end in ends] != list(range(count)):
        raise CannotExportError("modules are called another number of times in training mode")
    return ends


def _same(one: Cut, other: Cut) -> tuple[Cut, Cut | None]:
    """Return both cuts if their states are alike, else only the first."""
    return one, other if [list(state) for state in one.states] == [
        list(state) for state in other.states
    ] else None


def _with_free_axes(inputs: InputSpec, program: Program) -> InputSpec:
    """Return the inputs with None for every axis that may have several sizes, and the limits of these."""
    found = []
    for item, sides in zip(inputs.inputs, _sides(program), strict=True):
        shape = tuple(side if isinstance(side, int) else None for side in sides)
        limits = tuple(None if isinstance(side, int) else side for side in sides)
        found.append(replace(item, shape=shape, limits=limits if any(limits) else ()))
    return replace(inputs, inputs=tuple(found))


def _sides(program: Program) -> list[list[int | tuple[int, int | None] | None]]:
    """Return the sizes of every input without the batch axis: one, the limits of several, or None for any."""
    found = []
    for number, node in enumerate(node for node in program.graph.nodes if node.op == "placeholder"):
        sides: list[int | tuple[int, int | None] | None] = []
        for axis, side in enumerate(node.meta["val"].shape):
            least, most = program.limits.get((number, axis), (1, None))
            if axis and isinstance(side, torch.SymInt):
                sides.append(
                    least if least == most else (None if (least, most) == (1, None) else (least, most))
                )
            elif axis:
                sides.append(int(side))
        found.append(sides)
    return found


def _part(cut: Cut, trained: Cut | None, number: int) -> ExportedPart:
    in_eval, takes = cut.part(number)
    in_training = None if trained is None else trained.part(number)[0]
    return ExportedPart(_tensors(cut, trained), takes, in_eval, in_training)


def _tensors(cut: Cut, trained: Cut | None) -> dict[str, Tensor]:
    return cut.program.tensors if trained is None else {**trained.program.tensors, **cut.program.tensors}


def _classifier(cut: Cut, trained: Cut | None, number: int, num_classes: int) -> ExportedPart:
    """Return the last part, with its last Linear as a Fp32Linear."""
    in_eval, takes = cut.part(number)
    in_training = None if trained is None else trained.part(number)[0]
    graphs = [graph for graph in (in_eval, in_training) if graph is not None]
    names = {_last_linear(graph) for graph in graphs}
    tensors = _tensors(cut, trained)
    last = names.pop()
    given = [tensors[name] for name in last or () if name is not None]
    if names or last is None or not all(isinstance(tensor, nn.Parameter) for tensor in given):
        return ExportedPart(tensors, takes, in_eval, in_training)
    weight, bias = last
    linear = Fp32Linear(tensors[weight].shape[1], num_classes, bias=bias is not None)
    linear.to(tensors[weight].device)
    if num_classes == len(tensors[weight]):  # the same weights, which may be frozen, or another layer's, too
        linear._parameters["weight"] = tensors[weight]  # type: ignore[assignment]
        if bias is not None:
            linear._parameters["bias"] = tensors[bias]  # type: ignore[assignment]
    for graph in graphs:
        _take_off_linear(graph)
    return ExportedPart(tensors, takes, in_eval, in_training, (weight.rpartition(".")[0] or "linear", linear))


def _last_linear(graph: fx.Graph) -> tuple[str, str | None] | None:
    """Return the names of the weight and bias of the Linear that computes a graph's output; None for another layer."""
    output = next(iter(reversed(graph.nodes))).args[0]
    if not isinstance(output, fx.Node) or output.target != aten.linear.default or len(output.users) != 1:
        return None
    weight, bias = output.args[1], (*output.args, None)[2]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or len(weight.users) != 1:
        return None
    if bias is not None and (not isinstance(bias, fx.Node) or bias.op != "get_attr"):
        return None
    return str(weight.target), None if bias is None else str(bias.target)


def _take_off_linear(graph: fx.Graph) -> None:
    output = next(iter(reversed(graph.nodes)))
    (linear,) = output.args
    assert isinstance(linear, fx.Node)
    output.args = (linear.args[0],)
    graph.eliminate_dead_code()
