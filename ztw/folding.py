"""A network made ready for inference: its BatchNorms become part of the convolutions before them."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from ztw.backbone import Backbone
from ztw.errors import ZtwError
from ztw.network import EarlyExitNetwork

Network = TypeVar("Network", Backbone, EarlyExitNetwork)


def fold_batch_norm(network: Network) -> Network:
    """A copy, in eval mode, that computes the same with fewer passes over the activations.

    network: an EarlyExitNetwork, or a Backbone alone. A BatchNorm is folded where it follows a convolution
    or a Linear that nothing else reads; others stay. The copy is for inference only: training needs the
    BatchNorms. Answers agree up to rounding. Raises ZtwError for a stage that torch.fx cannot trace.
    """
    folded = copy.deepcopy(network).eval()
    backbone = folded.backbone if isinstance(folded, EarlyExitNetwork) else folded
    for number, stage in enumerate(backbone.stages):
        backbone.stages[number] = _fold(stage, f"{backbone.arch}: stage {number}")
    backbone.classifier = _fold(backbone.classifier, f"{backbone.arch}: classifier")
    return folded


def _fold(module: nn.Module, name: str) -> nn.Module:
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
        return module
    try:
        graph = None if isinstance(module, fx.GraphModule) else _Tracer().trace(module)
        traced = cast(fx.GraphModule, module) if graph is None else fx.GraphModule(module, graph)
        return fuse(_without_dropout(traced), inplace=True, no_trace=True)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ZtwError(f"{name}: cannot be traced to fold its BatchNorms ({reason})") from error


def _without_dropout(traced: fx.GraphModule) -> fx.GraphModule:
    """Dropout does nothing at inference, but stands between a convolution and its BatchNorm."""
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    """Keeps every module without children whole, whatever it does inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())
