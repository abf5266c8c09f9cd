"""What a study's config means for each cell: overrides merged, IC sets and ensembles filled in, all checked.

Imports no torch: a config must be refused at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import pairwise, product
from typing import Any

from ztw.errors import ZtwError
from ztw.torchvision_names import TORCHVISION_BLOCKS

CIFAR_RESNETS = tuple(f"resnet{depth}" for depth in (8, 14, 20, 26, 32, 38, 44, 56, 110))
ARCHS = (*CIFAR_RESNETS, "vgg16_bn", "wide_resnet_32_4", "mobilenet")
BLOCKS = {"vgg16_bn": 14, "wide_resnet_32_4": 15, "mobilenet": 13}
SMALLEST_IMAGE = {"vgg16_bn": 32}
# side of the images in pixels
BUILT_IN_DATASETS = {
    "fashion_mnist": 28,
    "cifar10": 32,
    "cifar100": 32,
    "tiny_imagenet": 64,
    "svhn": 32,
    "imagenet": 224,
    "digits": 8,
}
GREY = ("fashion_mnist", "digits")
ENSEMBLE_KINDS = ("geometric", "arithmetic", "uniform")
NO_THRESHOLD = ("patience",)
RECIPE = (
    "epochs",
    "batch_size",
    "optimizer",
    "lr",
    "weight_decay",
    "momentum",
    "schedule",
    "milestones",
    "gamma",
)
ANATOMY = ("head", "pooling", "width", "layer_norm", "placement")
EXIT_WEIGHTS = ("uniform", "depth", "growing")

Config = dict[str, Any]


def blocks(arch: str) -> int:
    """Number of blocks a head can sit on: 3n for the ResNet of 6n+2 layers."""
    if arch.startswith("torchvision/"):
        return TORCHVISION_BLOCKS[arch.removeprefix("torchvision/")]
    if arch in BLOCKS:
        return BLOCKS[arch]
    return (int(arch.removeprefix("resnet")) - 2) // 2


def image_size(config: Config, dataset: str) -> int:
    """Side of a data set's images in pixels."""
    folders = config["data"]["image_folders"]
    return folders[dataset]["size"] if dataset in folders else BUILT_IN_DATASETS[dataset]


def study_cells(config: Config, validate: Callable[[Config], None]) -> dict[tuple[str, str], Config]:
    """(data set, architecture) -> the sections `data`, `backbone`, `ics` that hold there.

    config: with its defaults filled in; validate: raises ZtwError for what the schema refuses.
    Every set of `ics.sets` comes out complete: its anatomy, its regime and its own recipe.
    """
    _check_names(config)
    cells, used = {}, set()
    for dataset, arch in product(config["datasets"], config["archs"]):
        merged = copy.deepcopy(config)
        applied = [i for i, item in enumerate(config["overrides"]) if _matches(item, dataset, arch)]
        try:
            for index in applied:
                _merge(merged, {k: v for k, v in config["overrides"][index].items() if k in _SECTIONS})
            if applied:
                validate(merged)
            _check_cell(merged, dataset, arch)
            _check_honest(merged)
            _check_same_for_all(config, merged)
            merged["ics"]["sets"] = _complete_sets(merged, arch)
        except ZtwError as error:
            raise ZtwError(
                f"{error} (after overrides, {dataset}/{arch})" if applied else str(error)
            ) from error
        cells[dataset, arch] = {section: merged[section] for section in _SECTIONS}
        used |= set(applied)
    for index in range(len(config["overrides"])):
        if index not in used:
            raise ZtwError(f"overrides.{index}: matches no data set and architecture of this study")
    return cells


_SECTIONS = ("data", "backbone", "ics")


def _check_same_for_all(config: Config, merged: Config) -> None:
    """The workflow's jobs are the same for all cells: overrides may add no set and change no regime."""
    for key in ("root", "image_folders"):
        if merged["data"][key] != config["data"][key]:
            raise ZtwError(f"data.{key}: the same for all cells; set it under data, not in overrides")
    for name, ics in merged["ics"]["sets"].items():
        if name not in config["ics"]["sets"]:
            raise ZtwError(f"ics.sets.{name}: the same for all cells; name it under ics, not in overrides")
        if ics["training"] != config["ics"]["sets"][name]["training"]:
            raise ZtwError(f"ics.sets.{name}.training: the same for all cells; make it a set of its own")


def _matches(item: Config, dataset: str, arch: str) -> bool:
    return dataset in item.get("datasets", [dataset]) and arch in item.get("archs", [arch])


def _merge(target: Config, changes: Mapping[str, Any]) -> None:
    """Write `changes` over `target`, mapping by mapping."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def complete_ensembles(config: Config) -> None:
    """Fill in every ensemble a method may name, the plain kinds among them; in place."""
    section = config["ensembles"]
    shared = {key: section[key] for key in ("samples", "include_final", "fit_on")}
    for name in section["sets"]:
        if name in ENSEMBLE_KINDS:
            raise ZtwError(f"ensembles.sets.{name}: is the name of a kind; choose another")
    named = {kind: {"kind": kind} for kind in ENSEMBLE_KINDS} | section["sets"]
    section["sets"] = {name: {**shared, **own} for name, own in named.items()}


def _check_names(config: Config) -> None:
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
    known = [*ARCHS, *(f"torchvision/{name}" for name in TORCHVISION_BLOCKS)]
    for index, arch in enumerate(config["archs"]):
        if arch not in known:
            raise ZtwError(f"archs.{index}: {arch!r} is unknown; known: {', '.join(known)}")
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


def _check_cell(config: Config, dataset: str, arch: str) -> None:
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
    _check_recipe(config["backbone"], lambda key: f"backbone.{key}")


def _check_honest(config: Config) -> None:
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


def _check_recipe(recipe: Config, label: Callable[[str], str]) -> None:
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


def _complete_sets(config: Config, arch: str) -> dict[str, Config]:
    """Every IC set with what the section says for all, and its recipe; a joint training's from `backbone`."""
    complete = {}
    for name, own in config["ics"]["sets"].items():
        home = "backbone" if own["training"] == "joint" else "ics"

        def label(key: str, name: str = name, own: Config = own, home: str = home) -> str:
            return f"ics.sets.{name}.{key}" if key in own else f"{home if key in RECIPE else 'ics'}.{key}"

        whole = {key: config["ics"][key] for key in ANATOMY}
        whole |= {key: config[home][key] for key in RECIPE} | own
        if own["training"] == "joint" and not whole["epochs"] > 0:
            raise ZtwError(f"ics.sets.{name}.epochs: the key is missing (backbone.epochs is 0)")
        if own.get("schedule") == "one_cycle" and "milestones" not in own:
            whole["milestones"] = []
        _check_recipe(whole, label)
        _check_placement(whole["placement"], arch, label("placement"))
        _check_regime(name, whole, arch)
        recipe = {key: whole.pop(key) for key in RECIPE}
        complete[name] = {**whole, "recipe": recipe}
    return complete


def _check_regime(name: str, whole: Config, arch: str) -> None:
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
    return blocks(arch) // (1 if placement == "all" else int(placement.split()[1]))


def _check_placement(placement: Any, arch: str, label: str) -> None:
    if isinstance(placement, str):
        word, _, number = placement.partition(" ")
        if placement != "all" and not (word == "every" and number.isdigit() and int(number) > 0):
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
