"""Fold BatchNorms into the convolutions before them, for inference."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ztw.batch import mapped
from ztw.errors import ZtwError
from ztw.models.backbone import Backbone
from ztw.models.cascade import ModelCascade
from ztw.models.exported import ExportedPart, aten
from ztw.models.exporting import export_part
from ztw.models.graph import CannotExportError
from ztw.models.network import EarlyExitNetwork

Network = TypeVar("Network", Backbone, EarlyExitNetwork)
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
CLOSE = 1e-3  # tolerance, relative to the largest logit


def fold_batch_norm(network: Network) -> Network:
    """Copy a network for inference, with its BatchNorms folded into the convolutions before them.

    A BatchNorm is folded if it follows a convolution whose output it alone uses.

    The copy is in eval mode. Its logits on two random samples must agree with the original's up to rounding. Take costs
    (`ztw.macs`) from the original, because the bias of a folded convolution counts.

    Args:
        network: an EarlyExitNetwork or a Backbone.

    Raises:
        ZtwError: for any other model, for a stage that torch.export cannot follow, and if the logits differ.

    Example:
        >>> import torch, ztw
        >>> backbone = ztw.build_backbone("resnet8")
        >>> folded = ztw.fold_batch_norm(backbone)
        >>> any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        False
    """
    if not isinstance(network, Backbone | EarlyExitNetwork):
        raise ZtwError(
            f"fold_batch_norm: {type(network).__name__}, must be an EarlyExitNetwork or a Backbone"
        )
    folded = copy.deepcopy(network).eval()
    backbone: Backbone = folded.backbone if isinstance(folded, EarlyExitNetwork) else folded
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        batch: Any = backbone.inputs.sample(2, next(backbone.parameters(), None))
        expected = folded(batch)
        if isinstance(backbone, ModelCascade):
            for stage, member in zip(backbone.stages, backbone.members, strict=True):
                stage.backbone = fold_batch_norm(member)
            _compare(backbone.arch, folded(batch), expected)
            return folded
        states = [mapped(state, Tensor.clone) for state in (batch, *backbone.features(batch))]
        for number, state in enumerate(states):
            try:
                if number < len(backbone.stages):
                    backbone.stages[number] = _fold(backbone.stages[number], state)
                else:
                    backbone.classifier = _fold(backbone.classifier, state)
            except CannotExportError as error:
                raise ZtwError(
                    f"{backbone.arch}: a stage cannot be exported to fold its BatchNorms ({error})"
                ) from error
        backbone.give_needs()
        _compare(backbone.arch, folded(batch), expected)
    return folded.eval()


def _compare(arch: str, found: Tensor, expected: Tensor) -> None:
    scale = float(expected.nan_to_num().abs().max())
    if not torch.allclose(found, expected, rtol=0, atol=CLOSE * max(1.0, scale), equal_nan=True):
        difference = float((found - expected).abs().max())
        raise ZtwError(
            f"{arch}: folded BatchNorms change the logits by up to {difference:.3g}; use the network without folding"
        )


def _fold(module: nn.Module, state: object) -> nn.Module:
    part = export_part(module, state, trains=False)
    graph = copy.deepcopy(part.eval_graph)
    tensors = {name: where[key] for name, (where, key) in zip(part.names, part.places, strict=True)}
    folded = False
    for node in list(graph.nodes):
        if node.target == aten.batch_norm.default and _is_foldable(node):
            _fold_node(graph, node, tensors)
            folded = True
    if not folded:
        return module
    graph.eliminate_dead_code()
    linear = None
    if part.linear is not None:
        where, key = part.linear
        linear = (part.linear_name, where[key])
    return ExportedPart(tensors, part.takes, graph, None, linear).eval()


def _is_foldable(norm: fx.Node) -> bool:
    """Return whether a BatchNorm normalises a convolution that nothing else reads, by stored means and variances."""
    convolution, *numbers = norm.args[:5]
    if (
        not isinstance(convolution, fx.Node)
        or convolution.target not in CONVOLUTIONS
        or len(convolution.users) > 1
    ):
        return False
    weights = [arg for arg in (*convolution.args[1:3], *numbers) if arg is not None]
    stored = all(isinstance(arg, fx.Node) and arg.op == "get_attr" for arg in weights)
    return stored and numbers[2] is not None and norm.args[5] is False


def _fold_node(graph: fx.Graph, norm: fx.Node, tensors: dict[str, Tensor]) -> None:
    convolution, scale, shift, mean, variance = norm.args[:5]
    assert isinstance(convolution, fx.Node)
    weight, bias = convolution.args[1], (*convolution.args, None, None)[2]

    def of(node: object) -> Any:
        return tensors[str(node.target)] if isinstance(node, fx.Node) else None

    eps: Any = norm.args[7]
    new = fuse_conv_bn_weights(of(weight), of(bias), of(mean), of(variance), eps, of(scale), of(shift))
    name = f"{weight.target}_{convolution.name}"  # type: ignore[union-attr]
    tensors[name], tensors[f"{name}_bias"] = new
    with graph.inserting_before(convolution):
        both = (graph.get_attr(name), graph.get_attr(f"{name}_bias"))
    convolution.args = (convolution.args[0], *both, *convolution.args[3:])
    norm.replace_all_uses_with(convolution)
    graph.erase_node(norm)
