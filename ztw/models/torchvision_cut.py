"""Cut torchvision's classification models into stages by tracing."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from ztw.batch import InputSpec
from ztw.catalogue.torchvision import TORCHVISION_BLOCKS, TORCHVISION_PREFIX
from ztw.download import bounded_wait
from ztw.errors import ZtwError, reason, unknown
from ztw.models.backbone import Backbone
from ztw.models.cut import cut_model

WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # environment variable of torch
WEIGHTS = ("DEFAULT", "IMAGENET1K_V1")  # torchvision's names for its best and its first weights


def cut(arch: str, num_classes: int, channels: int, size: int, weights: str | None = None) -> Backbone:
    """Build a torchvision model as a Backbone, with one stage per block. Arguments as in `build_backbone`.

    The last Linear is new unless num_classes is 1000. Weights have torchvision's names with the prefix `stages.<i>.` or
    `classifier.`.

    Raises:
        ZtwError: for an unknown name, a size that the model cannot take, and a failed download.
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
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, size, size))
        return cut_model(model, arch, InputSpec.of_shape((channels, size, size)), num_classes)
    except (AssertionError, RuntimeError) as error:  # torch and torchvision raise them for an invalid shape
        reason = " ".join(str(error).split())[:160]
        raise ZtwError(f"{arch}: cannot take images of {size}x{size} pixels ({reason})") from error


def _build(name: str, size: int, weights: str | None) -> nn.Module:
    # a vision transformer has one weight per position in the image
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
    """Limit the wait for torchvision's weights, read only tensors, and say what to do if the download fails.

    torchvision checks the first 8 digits of the SHA-256.
    """
    folder, file = Path(torch.hub.get_dir()) / "checkpoints", url.rpartition("/")[2]
    try:
        with bounded_wait(), _weights_only():
            yield
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = reason(error, folder / file, url)[:160]
        raise ZtwError(
            f"{TORCHVISION_PREFIX}{name}: no pretrained weights ({why}); download {url} by hand and save it"
            f" as {folder / file}"
        ) from error


@contextmanager
def _weights_only() -> Iterator[None]:
    """Make torch.load read only tensors, whatever its arguments are."""
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[WEIGHTS_ONLY]
        else:
            os.environ[WEIGHTS_ONLY] = before
