"""Check what types cannot express: references between keys, and combinations that are not allowed.

Every check raises ZtwError in one line: the key, the bad value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from ztw.catalogue.parts import EXIT_WEIGHTS, has_threshold, is_fitted, known
from ztw.catalogue.timm import TIMM_PREFIX, check_timm_name
from ztw.catalogue.torchvision import TORCHVISION_BLOCKS, TORCHVISION_PREFIX
from ztw.errors import ZtwError
from ztw.study.images import image_channels, image_size, is_streamed
from ztw.study.settings import MethodKeys, MethodSettings, Study
from ztw.study.training_settings import BackboneBuild, BackboneSettings, IcSet, Placement, Recipe
from ztw.study.validate import as_written, did_you_mean

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
        _check_known("datasets", name, datasets, advice="; add your own images under data.image_folders")
    named = {f"archs.{index}": arch for index, arch in enumerate(study.archs)}
    named |= {f"methods.{name}.static": m.static for name, m in study.methods.items() if m.static is not None}
    for label, arch in named.items():
        _check_arch(label, arch)
    for index, item in enumerate(study.overrides):
        _check_listed(f"overrides.{index}.datasets", item.datasets or (), study.datasets, "datasets")
        known = dict.fromkeys([*study.archs, *study.statics.values()])
        _check_listed(f"overrides.{index}.archs", item.archs or (), list(known), "archs")
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
        _check_known(f"ensembles.sets.{name}.kind", ensemble.kind, known("ensemble"))
    for name in study.methods:
        _check_method(study, name)
    if study.tracking not in ("sqlite", "none") and "://" not in study.tracking:
        raise ZtwError(
            f"tracking: {study.tracking!r} is unknown; known: sqlite, none, or a tracking server's URI"
        )


def _check_known(label: str, name: str, known: Sequence[str], or_else: str = "", advice: str = "") -> None:
    """Check a name. or_else: other allowed values, for the error."""
    if name not in known:
        listed = f"{', '.join(known)}{or_else}{did_you_mean(name, known)}{advice}"
        raise ZtwError(f"{label}: {name!r} is unknown; known: {listed}")


def _check_listed(label: str, names: Iterable[str], listed: Sequence[str], where: str) -> None:
    for name in names:
        if name not in listed:
            raise ZtwError(
                f"{label}: {name!r} is not in {where}; listed: {', '.join(listed)}{did_you_mean(name, listed)}"
            )


def _check_static(study: Study, name: str) -> None:
    method = study.methods[name]
    if study.logits:
        _check_listed(f"methods.{name}.static", [str(method.static)], list(study.exit_sets), "logits.sets")
        for key in own_training(method):
            raise ZtwError(f"methods.{name}.{key}: has no meaning in a study from logits; leave it out")
    for key, field in MethodKeys.model_fields.items():
        if key not in ("static", "int8", "distillation") and getattr(method, key) != field.default:
            raise ZtwError(
                f"methods.{name}.{key}: has no meaning with static (a static network has one exit); leave it out"
            )
    others = [other.static for other in study.methods.values() if not own_training(other)]
    if own_training(method) and name in (*study.archs, *others):
        raise ZtwError(
            f"methods.{name}: has a training of its own, and {name} is a network of this study already; choose another"
            " name for the method"
        )
    _check_teachers(study, name)


def own_training(method: MethodSettings) -> list[str]:
    """List the keys that a static row has for a training of its own."""
    return [*method.own_training, *(["distillation"] if method.distillation else [])]


def _check_teachers(study: Study, name: str) -> None:
    """Check that a row learns from a static row that does not learn from it in turn."""
    learners, row = [name], study.methods[name]
    while row.distillation is not None:
        label, teacher = f"methods.{learners[-1]}.distillation.teacher", row.distillation.teacher
        _check_known(label, teacher, _float_statics(study), advice="; a teacher is a static row, not in int8")
        if teacher in learners:
            raise ZtwError(
                f"{label}: {teacher!r} learns from {learners[-1]!r} in turn; choose another teacher"
            )
        learners.append(teacher)
        row = study.methods[teacher]


def _check_method(study: Study, name: str) -> None:
    method, sets = study.methods[name], list(study.exit_sets)
    where = "logits.sets" if study.logits else "ics.sets"
    if method.int8:
        _check_int8(study, name)
    if method.static is not None:
        return _check_static(study, name)
    for key in own_training(method):
        raise ZtwError(
            f"methods.{name}.{key}: only a static row trains a network of its own; set it under ics.sets, or leave"
            " it out"
        )
    if method.cascade_of:
        _check_cascade(study, name, method.cascade_of)
    elif not method.ics:
        raise ZtwError(f"methods.{name}: the key 'ics' is missing (or 'static', or 'cascade_of')")
    else:
        _check_listed(f"methods.{name}.ics", [method.ics], sets, where)
    if method.ensemble is not None:
        _check_known(f"methods.{name}.ensemble", method.ensemble, list(study.ensembles.sets), ", null")
    _check_known(f"methods.{name}.rule", method.rule, known("rule"))
    _check_known(f"methods.{name}.thresholds", method.thresholds, known("thresholds"))
    if method.rule == "fixed_exit":
        _check_fixed_exit(study, name)
    if not has_threshold(method.rule) and method.thresholds != "shared":
        raise ZtwError(
            f"methods.{name}.thresholds: {method.thresholds!r}: the rule {method.rule} has no threshold;"
            " leave it out"
        )
    if is_fitted(method.rule) and method.thresholds == "risk_controlled":
        raise ZtwError(
            f"methods.{name}.thresholds: risk_controlled: the rule {method.rule} is fitted on the same images, so"
            " there is no guarantee; use another rule or other thresholds"
        )


def _check_cascade(study: Study, name: str, members: tuple[str, ...]) -> None:
    label = f"methods.{name}"
    if study.methods[name].ics:
        raise ZtwError(
            f"{label}.ics: has no meaning with cascade_of, whose networks have no ICs; leave it out"
        )
    for member in members:
        _check_known(
            f"{label}.cascade_of",
            member,
            _float_statics(study),
            advice="; a member is a static row, not in int8; set int8 for the cascade",
        )
    networks = [study.network_of(member) for member in members]
    if len(set(networks)) < len(networks):
        raise ZtwError(
            f"{label}.cascade_of: {as_written(members)} has a network twice; list each network once"
        )


def _float_statics(study: Study) -> list[str]:
    """List the static rows without int8: rows that other rows can name."""
    return [name for name, method in study.methods.items() if method.static and not method.int8]


def _check_int8(study: Study, name: str) -> None:
    label = f"methods.{name}.int8: true"
    if study.logits:
        raise ZtwError(f"{label}: has no meaning in a study from logits; leave it out")
    if not study.latency.batch_sizes:
        return
    if "onnxruntime" not in study.latency.runtimes:
        raise ZtwError(
            f"{label}: is timed in ONNX Runtime only; add onnxruntime to latency.runtimes, or set latency.batch_sizes"
            " to []"
        )
    if study.device.startswith("cuda"):
        raise ZtwError(
            f"{label}: is timed on the CPU only, but device is {study.device}; set device to cpu, or"
            " latency.batch_sizes to []"
        )


def _check_fixed_exit(study: Study, name: str) -> None:
    method = study.methods[name]
    if method.ensemble:
        raise ZtwError(
            f"methods.{name}.ensemble: has no meaning with the rule fixed_exit, which computes one exit; leave it out"
        )
    if study.logits:
        raise ZtwError(
            f"methods.{name}.rule: fixed_exit: files of logits have no costs of a network cut after an exit; give the"
            " cut network as a set of its own"
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
    size, channels = image_size(study.data, dataset), image_channels(study.data, dataset)
    if size < smallest_image(arch):
        raise ZtwError(
            f"{_arch_key(study, arch)}: {arch!r} needs images of at least {smallest_image(arch)} pixels a side;"
            f" {dataset} has {size}"
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


def _check_torchvision(study: Study, dataset: str, arch: str) -> None:
    if image_channels(study.data, dataset) == 1:
        raise ZtwError(f"{_arch_key(study, arch)}: {arch!r} needs colour images; {dataset} is greyscale")
    size = image_size(study.data, dataset)
    if "vit_" in arch and size % (patch := int(arch.rpartition("_")[2])):
        raise ZtwError(
            f"{_arch_key(study, arch)}: {arch!r} needs an image side that is a multiple of {patch} pixels;"
            f" {dataset} has {size}"
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
    _check_known(label("head"), ics.head, known("head"))
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
        return _check_known(f"{label}.exit_weights", weights, EXIT_WEIGHTS, ", a list of numbers")
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
