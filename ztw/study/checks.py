"""Check what types cannot express: references between keys, and combinations that are not allowed.

Every check raises ZtwError in one line: the key, the bad value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from itertools import pairwise

from ztw.catalogue.architectures import (
    OPTION_OWNERS,
    archs,
    blocks,
    listed_placement,
    placement_step,
    smallest_image,
)
from ztw.catalogue.datasets import DATASETS
from ztw.catalogue.parts import EXIT_WEIGHTS, known
from ztw.catalogue.timm import TIMM_PREFIX, check_timm_name
from ztw.catalogue.torchvision import TORCHVISION_BLOCKS, TORCHVISION_PREFIX
from ztw.errors import ZtwError
from ztw.study.images import image_channels, image_size, is_streamed
from ztw.study.method_checks import check_known, check_listed, check_method
from ztw.study.settings import Study
from ztw.study.training_settings import BackboneBuild, BackboneSettings, IcSet, Placement, Recipe
from ztw.study.validate import as_written

# Key of `backbone` -> the sources that use it
SOURCES_OF = {
    "path": ("file",),
    "url": ("url",),
    "sha256": ("url", "file"),
    "pretrained": ("torchvision",),
    "expected_accuracy": ("file", "url", "torchvision"),
}
# The only torchvision model in the released code. Others have layers that the released counter does not count.
RELEASED_TORCHVISION = f"{TORCHVISION_PREFIX}resnet50"
# key -> its full name in the study
Label = Callable[[str], str]


def check_names(study: Study) -> None:
    """Check references by name: data sets, architectures, parts, methods, overrides."""
    if not study.ics.sets:
        raise ZtwError("config: the key 'ics' is missing (or 'logits', in a study from logits)")
    folders = study.data.image_folders
    for name in folders:
        if name in DATASETS:
            raise ZtwError(f"data.image_folders.{name}: is the name of a built-in data set; choose another")
    datasets = [*DATASETS, *folders]
    for name in study.datasets:
        check_known("datasets", name, datasets, advice="; add your own images under data.image_folders")
    named = {f"archs.{index}": arch for index, arch in enumerate(study.archs)}
    named |= {f"methods.{name}.static": m.static for name, m in study.methods.items() if m.static is not None}
    for label, arch in named.items():
        _check_arch(label, arch)
    for index, item in enumerate(study.overrides):
        check_listed(f"overrides.{index}.datasets", item.datasets or (), study.datasets, "datasets")
        known = dict.fromkeys([*study.archs, *study.statics.values()])
        check_listed(f"overrides.{index}.archs", item.archs or (), list(known), "archs")
    check_parts(study)
    if study.latency.batch_sizes and "pytorch" not in study.latency.runtimes:
        raise ZtwError(
            f"latency.runtimes: {as_written(study.latency.runtimes)!r} must include pytorch; other runtimes are"
            " compared with it"
        )


def _check_arch(label: str, arch: str) -> None:
    torchvision = [f"{TORCHVISION_PREFIX}{name}" for name in TORCHVISION_BLOCKS]
    if arch.startswith(TIMM_PREFIX):
        check_timm_name(arch, label)
    elif arch not in archs() and arch not in torchvision:
        near = get_close_matches(arch, torchvision, n=3, cutoff=0.5)
        near = near or ["torchvision/<name>", "timm/<name>"]
        raise ZtwError(f"{label}: {arch!r} is unknown; known: {', '.join([*archs(), *near])}, ...")


def check_parts(study: Study) -> None:
    """Check ensembles, methods and tracking."""
    for name, ensemble in study.ensembles.sets.items():
        check_known(f"ensembles.sets.{name}.kind", ensemble.kind, known("ensemble"))
    for name in study.methods:
        check_method(study, name)
    if study.tracking not in ("sqlite", "none") and "://" not in study.tracking:
        raise ZtwError(
            f"tracking: {study.tracking!r} is unknown; known: sqlite, none, or a tracking server's URI"
        )


def _arch_key(study: Study, arch: str) -> str:
    """Return the key of the study that names an architecture."""
    rows = (f"methods.{name}.static" for name, method in study.methods.items() if method.static == arch)
    return "archs" if arch in study.archs else next(rows)


def check_cell(study: Study, dataset: str, arch: str, row: str | None = None) -> None:
    """Check that a data set, an architecture, a source of weights and a recipe fit together.

    Args:
        row: the static row whose recipe of its own is in `study.backbone`, for errors; None = no such row.
    """
    size, what = _size(study, dataset)
    channels = image_channels(study.data, dataset)
    if size < smallest_image(arch):
        raise ZtwError(
            f"{_arch_key(study, arch)}: {arch!r} needs images of at least {smallest_image(arch)} pixels a side;"
            f" {what} has {size}"
        )
    if arch.startswith(TORCHVISION_PREFIX):
        _check_torchvision(study, dataset, arch)
    if arch.startswith(TIMM_PREFIX) and "published" in study.evaluation.protocols:
        raise ZtwError(
            f"evaluation.protocols: published: the published operation counter supports none of timm's models, such as"
            f" {arch}; leave it out"
        )
    for key in ("mean", "std"):
        given = getattr(study.data, key)
        if given is not None and len(given) != channels:
            raise ZtwError(f"data.{key}: {as_written(given)!r}: {dataset} has {channels} channel(s)")
    if is_streamed(study.data, dataset) and study.data.crop_padding is not None:
        raise ZtwError(
            f"data.crop_padding: {dataset} is streamed and uses random resized crops instead; leave it out"
        )
    _check_source(study.backbone, arch)
    _check_build(study.backbone, arch)
    own = study.methods[row].own_training if row else {}
    check_recipe(study.backbone, lambda key: f"methods.{row}.{key}" if key in own else f"backbone.{key}")


def _size(study: Study, dataset: str) -> tuple[int, str]:
    """Return the side of the images that a network computes, in pixels, and what sets it."""
    if study.backbone.input_size is not None:
        return study.backbone.input_size, "input_size"
    return image_size(study.data, dataset), dataset


def _check_torchvision(study: Study, dataset: str, arch: str) -> None:
    if image_channels(study.data, dataset) == 1:
        raise ZtwError(f"{_arch_key(study, arch)}: {arch!r} needs colour images; {dataset} is greyscale")
    size, what = _size(study, dataset)
    if "vit_" in arch and size % (patch := int(arch.rpartition("_")[2])):
        raise ZtwError(
            f"{_arch_key(study, arch)}: {arch!r} needs an image side that is a multiple of {patch} pixels;"
            f" {what} has {size}"
        )
    untrained = study.backbone.source == "torchvision" and not study.backbone.epochs
    if untrained and dataset in DATASETS and dataset != "imagenet":
        raise ZtwError(
            f"backbone.epochs: 0: torchvision's weights predict ImageNet's 1000 classes, not {dataset}'s;"
            " set epochs above 0 to train the new last layer"
        )
    if "published" in study.evaluation.protocols and arch != RELEASED_TORCHVISION:
        raise ZtwError(
            f"evaluation.protocols: published: the published operation counter supports {RELEASED_TORCHVISION}"
            f" only of torchvision's models, not {arch}; leave it out"
        )


def check_honest(study: Study) -> None:
    """Check that the study holds out the images that its thresholds and ensembles need.

    A guarantee (`risk_controlled`) also needs images that no network or ensemble was trained on.
    """
    if not study.data.validation_fraction:
        _check_without_validation(study)
    for name, method in study.methods.items():
        if method.thresholds != "risk_controlled":
            continue
        label = f"methods.{name}.thresholds: risk_controlled"
        if method.ensemble and study.ensembles.sets[method.ensemble].fit_on == "validation":
            raise ZtwError(f"{label}: its ensemble is fitted on the validation images; use fit_on: train")
        if study.backbone.source != "train" and study.data.validation_from == "train":
            raise ZtwError(
                f"{label}: weights from {study.backbone.source} may have been trained on the validation"
                " images; set data.validation_from to test"
            )


def _check_without_validation(study: Study) -> None:
    fitted = [study.ensembles.sets[m.ensemble] for m in study.methods.values() if m.ensemble]
    needs = {
        "evaluation.protocols: held-out chooses thresholds on it; remove held-out": "held-out"
        in study.evaluation.protocols,
        "latency uses thresholds chosen on it; set latency.batch_sizes to []": study.latency.batch_sizes,
        "an ensemble is fitted on it (fit_on: validation); use fit_on: train": any(
            e.fit_on == "validation" for e in fitted
        ),
        "risk_controlled thresholds need it; set a fraction above 0": any(
            m.thresholds == "risk_controlled" for m in study.methods.values()
        ),
    }
    for reason, needed in needs.items():
        if needed:
            raise ZtwError(f"data.validation_fraction: 0: there is no validation split, but {reason}")


def _check_source(backbone: BackboneSettings, arch: str) -> None:
    source = backbone.source
    if source == "train" and not backbone.epochs > 0:
        raise ZtwError(f"backbone.epochs: {backbone.epochs:g} must be > 0 (source train)")
    if source == "torchvision" and not arch.startswith(TORCHVISION_PREFIX):
        raise ZtwError(f"backbone.source: torchvision has no weights for {arch!r}; known: torchvision/<name>")
    for key, needed_by in (("path", "file"), ("url", "url"), ("sha256", "url")):
        if source == needed_by and getattr(backbone, key) is None:
            raise ZtwError(f"backbone.{key}: the key is missing (source {source})")
    for key, sources in SOURCES_OF.items():
        if source not in sources and getattr(backbone, key) != BackboneSettings.model_fields[key].default:
            raise ZtwError(f"backbone.{key}: has no meaning with source {source}; leave it out")


def _check_build(backbone: BackboneSettings, arch: str) -> None:
    for key, (who, owners) in OPTION_OWNERS.items():
        value = getattr(backbone, key)
        if value != BackboneBuild.model_fields[key].default and arch not in owners:
            raise ZtwError(f"backbone.{key}: {value!r}: only {who} this option, not {arch}; leave it out")


def check_recipe(recipe: Recipe, label: Label) -> None:
    """Check the schedule and milestones of a recipe."""
    if recipe.schedule == "one_cycle" and recipe.milestones:
        raise ZtwError(
            f"{label('milestones')}: {as_written(recipe.milestones)!r} has no meaning with schedule one_cycle;"
            " leave it out or set schedule to milestones"
        )
    late = [epoch for epoch in recipe.milestones if epoch >= recipe.epochs]
    if late:
        raise ZtwError(f"{label('milestones')}: {late[0]} must be < epochs, which is {recipe.epochs:g}")


def check_set(name: str, ics: IcSet, arch: str, label: Label) -> None:
    """Check that an IC set, its training and an architecture fit together."""
    if not ics.epochs > 0:
        missing = "the key is missing" if ics.training == "joint" else "must be > 0"
        raise ZtwError(f"ics.sets.{name}.epochs: {missing} ({label('epochs')} is {ics.epochs:g})")
    check_recipe(ics, label)
    check_known(label("head"), ics.head, known("head"))
    check_placement(ics.placement, arch, label("placement"))
    _check_regime(f"ics.sets.{name}", ics)
    _check_exit_weights(f"ics.sets.{name}", ics, arch)


def _check_regime(label: str, ics: IcSet) -> None:
    """Check the keys of an IC set that depend on its training."""
    if ics.connection == "boosted" and ics.training == "separate":
        raise ZtwError(
            f"{label}.connection: boosted: the backbone's own exit adds to the ICs' logits, so it must be trained"
            " with them; set training to joint or layer_wise"
        )
    if ics.training == "separate" and ics.start == "scratch":
        raise ZtwError(
            f"{label}.start: scratch: training separate freezes the backbone; set training to joint or layer_wise"
        )
    training, joint = f"training {ics.training}", ics.training == "joint"
    meaningless = {
        "width": (ics.head == "pool" and ics.width != 1, "head pool, which has no convolution"),
        "frozen_dropout": (
            ics.frozen_dropout and ics.training != "separate",
            f"{training}, which does not freeze the backbone",
        ),
        "rescale_gradients": (ics.rescale_gradients and not joint, training),
        "distillation": (ics.distillation is not None and not joint, training),
        "stop_gradient": (
            ics.stop_gradient and (not joint or ics.rescale_gradients),
            training if not joint else "rescale_gradients, which also divides the gradients",
        ),
        "exit_weights": (ics.exit_weights != "uniform" and not joint, training),
    }
    for key, (is_set, other) in meaningless.items():
        if is_set:
            raise ZtwError(f"{label}.{key}: has no meaning with {other}; leave it out")


def _check_exit_weights(label: str, ics: IcSet, arch: str) -> None:
    weights = ics.exit_weights
    if isinstance(weights, str):
        return check_known(f"{label}.exit_weights", weights, EXIT_WEIGHTS, ", a list of numbers")
    if not any(weights):
        raise ZtwError(f"{label}.exit_weights: {as_written(weights)!r}: at least one must be > 0")
    heads = _heads(ics.placement, arch)
    if heads is not None and len(weights) != heads + 1:
        raise ZtwError(f"{label}.exit_weights: {len(weights)} numbers, {arch} has {heads + 1} exits")


def _heads(placement: Placement, arch: str) -> int | None:
    """Return the number of heads; None if it is unknown before the network is built."""
    placement, count = listed_placement(placement, arch), blocks(arch)
    if not isinstance(placement, str):
        return len(placement)
    step = placement_step(placement)
    if not step:
        return 0
    return None if count is None else count // step


def check_placement(placement: Placement, arch: str, label: str) -> None:
    """Check that an architecture has the blocks of a placement.

    The number of blocks of a timm model is unknown here; `ztw.models.placement` checks the placement again.
    """
    count = blocks(arch)
    listed, placement = as_written(placement), listed_placement(placement, arch)
    if isinstance(placement, str):
        if placement_step(placement) is None:
            raise ZtwError(
                f"{label}: {placement!r} is unknown; known: all, every <n>, sdn, a list of block indices,"
                " a list of fractions"
            )
        if _heads(placement, arch) == 0:
            raise ZtwError(f"{label}: {placement!r}: {arch} has only {count} blocks")
        return
    if count is not None and len(placement) > count:
        raise ZtwError(f"{label}: {listed!r}: {len(placement)} exits, {arch} has {count} blocks")
    fractions = any(isinstance(item, float) for item in placement)
    for item in placement:
        if fractions and not 0 < item <= 1:
            raise ZtwError(f"{label}: {item!r}: a fraction of the cost must lie in (0, 1]")
        if not fractions and not 0 <= item < (count or float("inf")):
            last = "" if count is None else count - 1
            raise ZtwError(f"{label}: {item!r}: {arch} has blocks 0..{last}")
    if any(later <= earlier for earlier, later in pairwise(placement)):
        raise ZtwError(f"{label}: {listed!r} must be increasing")
