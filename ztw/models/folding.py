"""Fold BatchNorms into the convolutions before them, for inference."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TypeVar

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ztw.errors import ZtwError
from ztw.models.backbone import Backbone
from ztw.models.inputs import HOOKS
from ztw.models.network import EarlyExitNetwork

Network = TypeVar("Network", Backbone, EarlyExitNetwork)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
CLOSE = 1e-3  # tolerance, relative to the largest logit


def fold_batch_norm(network: Network) -> Network:
    """Copy a network for inference, with its BatchNorms folded into the convolutions before them.

    A BatchNorm is folded if nothing else uses the convolution's output. Subclasses of PyTorch's modules, and modules
    with hooks or parametrizations, stay as they are. The copy's logits are compared with the original's on random
    images. Count costs with the original: folding adds biases, which `ztw.macs` counts.

    Args:
        network: an EarlyExitNetwork or a Backbone.

    Returns:
        The copy, in eval mode.

    Raises:
        ZtwError: for any other model, for a stage that torch.fx cannot trace, and if the logits differ.

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
    backbone = folded.backbone if isinstance(folded, EarlyExitNetwork) else folded
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        images = _images(backbone)
        expected = folded(images)
        for number, stage in enumerate(backbone.stages):
            backbone.stages[number] = _fold(stage, f"{backbone.arch}: stage {number}")
        backbone.classifier = _fold(backbone.classifier, f"{backbone.arch}: classifier")
        backbone.give_needs()
        _compare(backbone.arch, folded(images), expected)
    return folded


def _images(backbone: Backbone) -> torch.Tensor:
    like = next(backbone.parameters(), torch.empty(0))
    images = torch.randn(2, *backbone.input_shape, generator=torch.Generator().manual_seed(0))
    return images.to(like)


def _compare(arch: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.nan_to_num().abs().max())
    if not torch.allclose(found, expected, rtol=0, atol=CLOSE * max(1.0, scale), equal_nan=True):
        difference = float((found - expected).abs().max())
        raise ZtwError(
            f"{arch}: folded BatchNorms change the logits by up to {difference:.3g}; use the network without folding"
        )


def _fold(module: nn.Module, name: str) -> nn.Module:
    if not any(isinstance(part, BATCH_NORMS) for part in module.modules()) or _hooked(module):
        return module
    traced = _traced(module, name)
    _drop_dropout(traced)
    used = Counter(id(part) for node in traced.graph.nodes if (part := _read(traced, node)) is not None)
    for node in list(traced.graph.nodes):
        norm, before = _read(traced, node), (node.all_input_nodes or [None])[0]
        if norm is None or before is None or not _is_exactly(norm, BATCH_NORMS) or norm.running_mean is None:
            continue
        convolution = _read(traced, before)
        if convolution is None or not _is_exactly(convolution, CONVOLUTIONS):
            continue
        if used[id(convolution)] == 1 == len(before.users):
            fused: nn.Module = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]
            traced.set_submodule(str(before.target), fused)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _is_exactly(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Return whether a module computes exactly what PyTorch's class does. A parametrization changes the class."""
    return type(module) in kinds and "forward" not in vars(module) and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    """Return whether a module has hooks other than ztw's. Those are registered again later."""
    before = module._forward_pre_hooks.values()
    return bool(module._forward_hooks) or any(hook not in HOOKS.values() for hook in before)


def _traced(module: nn.Module, name: str) -> fx.GraphModule:
    if isinstance(module, fx.GraphModule):
        return module
    try:
        return fx.GraphModule(module, _Tracer().trace(module))
    except Exception as error:  # a user's forward may raise anything when it is called with a proxy
        reason = " ".join(str(error).split())[:160]
        raise ZtwError(f"{name}: cannot be traced to fold its BatchNorms ({reason})") from error


def _read(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that a node calls, or the module of the parameter that it reads."""
    if node.op == "call_module":
        return traced.get_submodule(str(node.target))
    if node.op == "get_attr":
        return traced.get_submodule(str(node.target).rpartition(".")[0])
    return None


def _drop_dropout(traced: fx.GraphModule) -> None:
    """Remove dropout, which does nothing at inference but separates a convolution from its BatchNorm."""
    for node in list(traced.graph.nodes):
        part = _read(traced, node)
        if part is not None and _is_exactly(part, DROPOUTS):
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)


class _Tracer(fx.Tracer):
    """Traces every module without children as one unit."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())
