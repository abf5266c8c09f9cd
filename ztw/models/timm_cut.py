"""Build timm's models and cut them into stages."""

from __future__ import annotations

from typing import Any, cast

import timm
from torch import nn

from ztw.catalogue.timm import TIMM_PREFIX
from ztw.errors import ZtwError
from ztw.models.backbone import Backbone
from ztw.models.cut import as_backbone


def cut(arch: str, num_classes: int, channels: int, size: int) -> Backbone:
    """Build a timm model with random weights as a Backbone. Arguments as in `build_backbone`.

    A model whose weights depend on the size of the images, such as a vision transformer, is built for this size.
    The last Linear has PyTorch's initial weights. timm's are ten times as large in EfficientNets, too large to
    fine-tune a network with a new last layer. Weights have timm's names with the prefix `stages.<i>.` or `classifier.`.

    Args:
        arch: "timm/<name>"; `ztw.catalogue.timm.check_timm_name` has checked it.

    Raises:
        ZtwError: for a model that cannot be built for these images, or cannot be cut.
    """
    name = arch.removeprefix(TIMM_PREFIX)
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    sized: dict[str, Any] = {"img_size": size} if config is not None and config.fixed_input_size else {}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels, **sized)
    except Exception as error:  # the models have many ways to refuse a size or a number of channels
        reason = " ".join(str(error).split())[:160]
        raise ZtwError(
            f"{arch}: cannot be built for {channels} channels of {size}x{size} pixels ({reason})"
        ) from error
    last = cast(Any, model).get_classifier()  # of all of timm's models
    if isinstance(last, nn.Linear):
        last.reset_parameters()
    try:
        backbone = as_backbone(model, (channels, size, size))
    except ZtwError as error:
        raise ZtwError(f"{arch}: {error}") from error
    backbone.arch = arch
    return backbone
