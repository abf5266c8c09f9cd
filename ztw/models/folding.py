"""A network made ready for inference: its BatchNorms become part of the convolutions before them."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TypeVar

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ztw.errors import ZtwError
from ztw.models.backbone import Backbone
from ztw.models.network import EarlyExitNetwork

Network = TypeVar("Network", Backbone, EarlyExitNetwork)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batch_norm(network: Network) -> Network:
    """A copy, in eval mode, that computes the same with fewer passes over the activations.

    network: an EarlyExitNetwork, or a Backbone alone. A BatchNorm is folded where it follows a convolution
    that is used there only; others stay. The copy is for inference only: training needs the BatchNorms.
    Answers agree up to rounding; take costs (`ztw.macs`) from the network itself, for a folded convolution
    has a bias that is counted. Raises ZtwError for anything else, and for a stage that torch.fx cannot trace.
    """
    if not isinstance(network, Backbone | EarlyExitNetwork):
        raise ZtwError(
            f"fold_batch_norm: {type(network).__name__}, must be an EarlyExitNetwork or a Backbone"
        )
    folded = copy.deepcopy(network).eval()
    backbone = folded.backbone if isinstance(folded, EarlyExitNetwork) else folded
    for number, stage in enumerate(backbone.stages):
        backbone.stages[number] = _fold(stage, f"{backbone.arch}: stage {number}")
    backbone.classifier = _fold(backbone.classifier, f"{backbone.arch}: classifier")
    backbone.give_needs()
    return folded


def _fold(module: nn.Module, name: str) -> nn.Module:
    if not any(isinstance(part, _BatchNorm) for part in module.modules()):
        return module
    traced = _traced(module, name)
    _drop_dropout(traced)
    used = Counter(id(part) for node in traced.graph.nodes if (part := _read(traced, node)) is not None)
    for node in list(traced.graph.nodes):
        norm, before = _read(traced, node), (node.all_input_nodes or [None])[0]
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or before is None:
            continue
        convolution = _read(traced, before)
        if not isinstance(convolution, CONVOLUTIONS):
            continue
        if used[id(convolution)] == 1 == len(before.users):
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _traced(module: nn.Module, name: str) -> fx.GraphModule:
    if isinstance(module, fx.GraphModule):
        return module
    try:
        return fx.GraphModule(module, _Tracer().trace(module))
    except Exception as error:  # whatever a user's forward does when it is called with a proxy
        reason = " ".join(str(error).split())[:160]
        raise ZtwError(f"{name}: cannot be traced to fold its BatchNorms ({reason})") from error


def _read(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module a node calls, or a parameter of which it reads."""
    if node.op == "call_module":
        return traced.get_submodule(str(node.target))
    if node.op == "get_attr":
        return traced.get_submodule(str(node.target).rpartition(".")[0])
    return None


def _drop_dropout(traced: fx.GraphModule) -> None:
    """Dropout does nothing at inference, but stands between a convolution and its BatchNorm."""
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(_read(traced, node), nn.Dropout):
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)


class _Tracer(fx.Tracer):
    """Keeps every module without children whole, whatever it does inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())
