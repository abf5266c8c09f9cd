"""What the schema of a config cannot say: names that refer to others, combinations that cannot be.

Every check raises ZtwError, one line that names the key, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from ztw.errors import ZtwError
from ztw.study.names import (
    ARCHS,
    BUILT_IN_DATASETS,
    CIFAR_RESNETS,
    EXIT_WEIGHTS,
    GREY,
    NO_THRESHOLD,
    SMALLEST_IMAGE,
    Config,
    blocks,
    image_size,
    placement_step,
)
from ztw.study.torchvision_names import TORCHVISION_BLOCKS, TORCHVISION_PREFIX


def check_names(config: Config) -> None:
    """What refers to what: data sets, architectures, methods."""
    folders = config["data"]["image_folders"]
    for name in folders:
        if name in BUILT_IN_DATASETS:
            raise ZtwError(f"data.image_folders.{name}: is the name of a built-in data set; choose another")
    for name in config["datasets"]:
        if name not in BUILT_IN_DATASETS and name not in folders:
            raise ZtwError(
                f"datasets: {name!r} is unknown; known: {', '.join([*BUILT_IN_DATASETS, *folders])};"
                " your own images go under data.image_folders"
            )
    cut = [f"{TORCHVISION_PREFIX}{name}" for name in TORCHVISION_BLOCKS]
    for index, arch in enumerate(config["archs"]):
        if arch not in ARCHS and arch not in cut:
            near = get_close_matches(arch, cut, n=3, cutoff=0.5) or ["torchvision/<name>"]
            raise ZtwError(f"archs.{index}: {arch!r} is unknown; known: {', '.join([*ARCHS, *near])}, ...")
    for index, item in enumerate(config["overrides"]):
        for key, listed in (("datasets", config["datasets"]), ("archs", config["archs"])):
            for name in item.get(key, []):
                if name not in listed:
                    raise ZtwError(
                        f"overrides.{index}.{key}: {name!r} is not in {key}; listed: {', '.join(listed)}"
                    )
    for name, method in config["methods"].items():
        _check_method(config, name, method)


def _check_method(config: Config, name: str, method: Config) -> None:
    sets, ensembles = config["ics"]["sets"], config["ensembles"]["sets"]
    if method["ics"] not in sets:
        raise ZtwError(f"methods.{name}.ics: {method['ics']!r} is not in ics.sets; listed: {', '.join(sets)}")
    if method["ensemble"] is not None and method["ensemble"] not in ensembles:
        raise ZtwError(
            f"methods.{name}.ensemble: {method['ensemble']!r} is unknown; known: {', '.join(ensembles)}, null"
        )
    if method["rule"] in NO_THRESHOLD and method["thresholds"] != "shared":
        raise ZtwError(
            f"methods.{name}.thresholds: {method['thresholds']!r}: the rule {method['rule']} has no threshold;"
            " leave it out"
        )


def check_cell(config: Config, dataset: str, arch: str) -> None:
    """What a data set, an architecture and a source of weights ask of each other."""
    size = image_size(config, dataset)
    if size < SMALLEST_IMAGE.get(arch, 1):
        raise ZtwError(
            f"archs: {arch!r} needs images of at least {SMALLEST_IMAGE[arch]} pixels a side,"
            f" {dataset} has {size}"
        )
    if arch.startswith("torchvision/"):
        if dataset in GREY:
            raise ZtwError(f"archs: {arch!r} needs colour images, those of {dataset} are grey")
        if "vit_" in arch and size % (patch := int(arch.rpartition("_")[2])):
            raise ZtwError(f"archs: {arch!r} needs a side that {patch} divides, {dataset} has {size} pixels")
        untrained = config["backbone"]["source"] == "torchvision" and not config["backbone"]["epochs"]
        if untrained and dataset in BUILT_IN_DATASETS and dataset != "imagenet":
            raise ZtwError(
                f"backbone.epochs: 0: torchvision's weights answer ImageNet's 1000 classes, not {dataset}'s;"
                " train the new last layer for some epochs"
            )
        if "published" in config["evaluation"]["protocols"]:
            raise ZtwError(
                f"evaluation.protocols: published: the published operation counter does not know {arch};"
                " leave it out"
            )
    channels = 1 if dataset in GREY else 3
    for key in ("mean", "std"):
        if config["data"][key] is not None and len(config["data"][key]) != channels:
            raise ZtwError(f"data.{key}: {config['data'][key]!r}: {dataset} has {channels} channel(s)")
    folder = config["data"]["image_folders"].get(dataset, {})
    if (dataset == "imagenet" or folder.get("stream")) and config["data"]["crop_padding"] is not None:
        raise ZtwError(
            f"data.crop_padding: {dataset} is streamed, with random resized crops instead; leave it out"
        )
    _check_source(config["backbone"], arch)
    check_recipe(config["backbone"], lambda key: f"backbone.{key}")


def check_honest(config: Config) -> None:
    """A guarantee needs images that neither the backbone nor an ensemble has learned from."""
    for name, method in config["methods"].items():
        if method["thresholds"] != "risk_controlled":
            continue
        label = f"methods.{name}.thresholds: risk_controlled"
        fitted = config["ensembles"]["sets"].get(method["ensemble"], {})
        if fitted.get("fit_on") == "validation":
            raise ZtwError(f"{label}: its ensemble is fitted on the validation images; use fit_on: train")
        if config["backbone"]["source"] != "train" and config["data"]["validation_from"] == "train":
            raise ZtwError(
                f"{label}: weights from {config['backbone']['source']} may have been trained on the validation"
                " images; set data.validation_from to test"
            )


def _check_source(section: Config, arch: str) -> None:
    source, label = section["source"], "backbone.source"
    if source == "train" and not section["epochs"] > 0:
        raise ZtwError(f"backbone.epochs: {section['epochs']!r} must be > 0 (source train)")
    if source == "torchvision" and not arch.startswith("torchvision/"):
        raise ZtwError(f"{label}: torchvision has no weights for {arch!r}; known: torchvision/<name>")
    for key, wanted_by in (("path", ("file",)), ("url", ("url",)), ("sha256", ("url", "file"))):
        if source in wanted_by and section[key] is None and not (source == "file" and key == "sha256"):
            raise ZtwError(f"backbone.{key}: the key is missing (source {source})")
        if source not in wanted_by and section[key] is not None:
            raise ZtwError(f"backbone.{key}: has no meaning with source {source}; leave it out")
    if section["shortcut"] != "conv" and arch not in CIFAR_RESNETS:
        raise ZtwError(
            f"backbone.shortcut: {section['shortcut']!r}: only the CIFAR ResNets have it, not {arch}"
        )


def check_recipe(recipe: Config, label: Callable[[str], str]) -> None:
    """Schedule and milestones; label: what the study calls a key."""
    if recipe["schedule"] == "one_cycle" and recipe["milestones"]:
        raise ZtwError(
            f"{label('milestones')}: {recipe['milestones']!r} has no meaning with schedule one_cycle;"
            " leave it out or set schedule to milestones"
        )
    late = [epoch for epoch in recipe["milestones"] if epoch >= recipe["epochs"]]
    if late:
        raise ZtwError(
            f"{label('milestones')}: {late[0]} is not before the last of {recipe['epochs']} epochs"
        )


def check_regime(name: str, whole: Config, arch: str) -> None:
    """What the training of an IC set allows; whole: the set with every key filled in."""
    label, weights = f"ics.sets.{name}", whole["exit_weights"]
    if whole["mode"] == "boosted" and whole["training"] == "separate":
        raise ZtwError(
            f"{label}.mode: boosted: the backbone's own exit adds to the ICs as well and must be trained with"
            " them; set training to joint or layer_wise"
        )
    if whole["head"] == "pool" and whole["width"] != 1:
        raise ZtwError(f"{label}.width: has no meaning with head pool, which has no convolution")
    if not isinstance(weights, str) and not any(weights):
        raise ZtwError(f"{label}.exit_weights: {weights!r}: one must be above 0")
    if whole["training"] == "separate" and whole["start"] == "scratch":
        raise ZtwError(
            f"{label}.start: scratch: training separate keeps the trunk frozen; use joint or layer_wise"
        )
    if whole["training"] != "joint":
        if whole["rescale_gradients"]:
            raise ZtwError(f"{label}.rescale_gradients: has no meaning with training {whole['training']}")
        if weights != "uniform":
            raise ZtwError(f"{label}.exit_weights: has no meaning with training {whole['training']}")
    if isinstance(weights, str):
        if weights not in EXIT_WEIGHTS:
            raise ZtwError(
                f"{label}.exit_weights: {weights!r} is unknown; known: {', '.join(EXIT_WEIGHTS)}, a list of numbers"
            )
    elif len(weights) != (exits := _heads(whole["placement"], arch) + 1):
        raise ZtwError(f"{label}.exit_weights: {len(weights)} numbers, {arch} has {exits} exits there")


def _heads(placement: Any, arch: str) -> int:
    if not isinstance(placement, str):
        return len(placement)
    step = placement_step(placement)
    return blocks(arch) // step if step else 0


def check_placement(placement: Any, arch: str, label: str) -> None:
    """Whether an architecture has the blocks that exits are to be placed on."""
    if isinstance(placement, str):
        if placement_step(placement) is None:
            raise ZtwError(
                f"{label}: {placement!r} is unknown; known: all, every <n>, a list of block indices,"
                " a list of fractions"
            )
        if _heads(placement, arch) < 1:
            raise ZtwError(f"{label}: {placement!r}: {arch} has only {blocks(arch)} blocks")
        return
    if len(placement) > blocks(arch):
        raise ZtwError(f"{label}: {placement!r}: {len(placement)} exits, {arch} has {blocks(arch)} blocks")
    if any(isinstance(item, float) for item in placement):
        for item in placement:
            if not 0 < item <= 1:
                raise ZtwError(f"{label}: {item!r}: a fraction of the cost must lie in (0, 1]")
    else:
        for item in placement:
            if not 0 <= item < blocks(arch):
                raise ZtwError(f"{label}: {item!r}: {arch} has blocks 0..{blocks(arch) - 1}")
    if any(later <= earlier for earlier, later in pairwise(placement)):
        raise ZtwError(f"{label}: {placement!r} must be increasing")
