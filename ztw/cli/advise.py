"""Ask for the advice for a model that a user names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ztw.catalogue.architectures import list_backbones
from ztw.catalogue.timm import TIMM_PREFIX
from ztw.catalogue.torchvision import TORCHVISION_PREFIX
from ztw.cli.images import Reader
from ztw.data.decoded import ImageSet
from ztw.data.folders import Listed, list_images
from ztw.data.images import decode_in_threads
from ztw.errors import ZtwError
from ztw.evaluation.advice import Advice
from ztw.evaluation.advise import advise
from ztw.evaluation.saving import load
from ztw.models.architectures import build_backbone
from ztw.models.backbone import Backbone
from ztw.models.import_weights import load_foreign, read_foreign
from ztw.progress import Note, on_screen

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of the published models
PUBLISHED = ("DEFAULT", "IMAGENET1K_V1")  # names of torchvision's weights


def advice_for(
    model: str,
    images: Path,
    weights: str | None,
    smaller: Sequence[Path],
    size: int,
    crop: bool,
    allowed_loss: float,
    batch_size: int,
    threads: int,
    epochs: float | None,
) -> Advice:
    """Return the advice; see the command's help for the arguments.

    Raises:
        ZtwError: for a model or images that cannot be used, and as `ztw.advise`.
    """
    listing = list_images(images, None, _notes)
    classes = listing["train"].class_names
    if Path(model).is_dir():
        backbone, reader = _saved(Path(model), weights, classes, crop)
    else:
        backbone, reader = _named(model, weights, len(classes), size, crop)
    train, held_out = (_read(reader, listing[split], split) for split in ("train", "test"))
    return advise(
        backbone,
        train,
        held_out,
        alternatives={folder.name: load(folder)[0].backbone for folder in smaller},
        allowed_loss=allowed_loss,
        batch_size=batch_size,
        threads=threads,
        epochs=epochs,
    )


def _saved(folder: Path, weights: str | None, classes: Sequence[str], crop: bool) -> tuple[Backbone, Reader]:
    """Load the backbone of a saved network, and check its classes."""
    network, _ = load(folder)
    if weights is not None:
        raise ZtwError(f"--weights: {folder} has its own weights; leave it out")
    known = network.class_names
    if len(classes) != network.backbone.num_classes or (known and list(known) != list(classes)):
        theirs = ", ".join(known or [f"{network.backbone.num_classes} classes"])
        raise ZtwError(f"{folder}: its classes are {theirs}; the folder's are {', '.join(classes)}")
    return network.backbone, Reader.of(network, folder, crop)


def _named(
    name: str, weights: str | None, num_classes: int, size: int, crop: bool
) -> tuple[Backbone, Reader]:
    """Build a model by its name, with weights from a file or from torchvision."""
    if name not in list_backbones() and not name.startswith(TIMM_PREFIX):
        raise ZtwError(
            f"{name}: must be the folder of a saved network, one of ztw.list_backbones(), e.g. torchvision/resnet18,"
            " or timm/<name>"
        )
    if weights is None:
        raise ZtwError(f"{name}: needs trained weights; give --weights FILE")
    published = weights if weights in PUBLISHED and name.startswith(TORCHVISION_PREFIX) else None
    backbone = build_backbone(name, num_classes, 3, size, weights=published)
    if published is None:
        load_foreign(backbone, read_foreign(weights, _notes), weights, report=_notes)
    return backbone, Reader((3, size, size), *_normalisation(name), crop)


def _normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not name.startswith(TIMM_PREFIX):
        return IMAGENET
    import timm

    config = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX))
    return IMAGENET if config is None else (tuple(config.mean), tuple(config.std))


def _read(reader: Reader, listed: Listed, split: str) -> ImageSet:
    """Decode the images of a split."""
    arguments = ((path,) for path in listed.paths())
    chunks = decode_in_threads(
        reader.pixels, arguments, len(listed.rows), f"reading {split}", lambda line: None
    )
    stored = torch.from_numpy(np.concatenate(list(chunks)))
    return ImageSet(stored, listed.labels(), len(listed.class_names), reader.mean, reader.std)


def _notes(line: str) -> None:
    """Print notes, and no progress."""
    if isinstance(line, Note):
        on_screen(line)
