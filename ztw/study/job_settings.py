"""Compute the settings of the jobs of a cell from the study, as plain values. Imports no torch.

They are the `params` of the workflow's rules: a changed value runs a job again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ztw.catalogue.datasets import DATASETS
from ztw.files import data_root
from ztw.study.layout import Cell
from ztw.study.provenance import file_stamp, folder_stamp
from ztw.study.settings import CellSettings, EnsembleSettings, Study
from ztw.study.training_settings import BackboneBuild

Values = dict[str, Any]

# Parts of a study


def frozen_sets(study: Study) -> list[str]:
    """List the IC sets on the frozen backbone. One job trains them all."""
    return [name for name, ics in study.ics.sets.items() if not ics.trains_backbone]


def joint_sets(study: Study) -> list[str]:
    """List the IC sets that train the backbone as well. Each is one job."""
    return [name for name, ics in study.ics.sets.items() if ics.trains_backbone]


def ensembles(study: Study) -> list[tuple[str, str]]:
    """List (IC set or cascade, ensemble) of the methods."""
    return sorted({(study.source_of(n), m.ensemble) for n, m in study.methods.items() if m.ensemble})


def fits(study: Study) -> dict[str, EnsembleSettings]:
    """Return how each ensemble of the methods is fitted."""
    return {name: study.ensembles.sets[name] for _, name in ensembles(study)}


def fitted_on_train(study: Study) -> set[str]:
    """Return the IC sets and cascades whose ensembles need logits of the training images."""
    fitted = fits(study)
    return {source for source, name in ensembles(study) if fitted[name].fit_on == "train"}


def splits(study: Study) -> list[str]:
    """List the splits whose logits are computed. Only ensembles need those of the training images."""
    return [*(["train"] if fitted_on_train(study) else []), *study.data.evaluated]


def static_splits(study: Study) -> list[str]:
    """List the splits of static networks: with the training images only for ensembles of cascades."""
    needed = fitted_on_train(study) & set(study.cascades)
    return [*(["train"] if needed else []), *study.data.evaluated]


def fitted_samples(study: Study) -> int | None:
    """Return the largest number of training images that an ensemble is fitted on; None = all."""
    wanted = [fit.samples for fit in fits(study).values() if fit.fit_on == "train"]
    return None if None in wanted else max((count for count in wanted if count), default=None)


# A data set


def folder(study: Study, dataset: str) -> Values | None:
    """Return the settings of a user's image folder; None for a built-in data set."""
    found = study.data.image_folders.get(dataset)
    return found.model_dump() if found else None


def image_stamps(study: Study, dataset: str, split: str) -> str | None:
    """Return a stamp of the files of an image folder: train/, or for "test" all splits. None for other data sets."""
    if found := study.data.image_folders.get(dataset):
        place: Any = found.path
    elif dataset in DATASETS and DATASETS[dataset].streamed:
        place = data_root(study.data.root) / dataset
    else:  # files of a built-in data set have a known SHA-256
        return None
    return folder_stamp(place, ["train"] if split == "train" else ["train", "test", "val"])


# A cell


def sections(study: Study, cell: Cell) -> CellSettings:
    """Return the sections of the study for a cell, also of a static network, with overrides applied."""
    return study.backbones[cell.dataset, cell.arch]


def arch(study: Study, cell: Cell) -> str:
    """Return the architecture of a cell, whose folder may have the name of a static network."""
    return study.statics.get(cell.arch, cell.arch)


def images(study: Study, cell: Cell) -> Values:
    """Return the settings of a cell's images: validation split, augmentation and normalisation."""
    return sections(study, cell).data.model_dump(exclude={"root", "image_folders"})


def build(study: Study, cell: Cell) -> Values:
    """Return the options of a cell's backbone."""
    backbone = sections(study, cell).backbone
    return {key: getattr(backbone, key) for key in BackboneBuild.model_fields}


def ic_sets(study: Study, cell: Cell, names: Iterable[str]) -> dict[str, Values]:
    """Return the settings of IC sets."""
    return {name: sections(study, cell).ics.sets[name].model_dump() for name in names}


def _static(study: Study, cell: Cell) -> Values:
    """Return the folder of a static network, its architecture and how it is built; cell: its own."""
    return {"network": cell.arch, "arch": study.statics[cell.arch], "build": build(study, cell)}


def statics(study: Study, cell: Cell) -> dict[str, Values]:
    """Return the static networks on a cell's data set, by method."""
    networks = {name: study.network_of(name) for name in study.methods if not study.logits}
    return {name: _static(study, cell.with_arch(of)) for name, of in networks.items() if of}


def distillation(study: Study, cell: Cell) -> Values | None:
    """Return how a static network learns from a teacher, and the teacher; None if it has none."""
    method = study.methods.get(cell.arch)
    if cell.arch not in study.statics or method is None or method.distillation is None:
        return None
    teacher = cell.with_arch(str(study.network_of(method.distillation.teacher)))
    return method.distillation.model_dump(exclude={"teacher"}) | {"teacher": _static(study, teacher)}


def _hardware(study: Study, cell: Cell) -> Values:
    return study.model_dump(include={"precision", "device", "compile"})


def _batch_size(study: Study, cell: Cell) -> int:
    return sections(study, cell).ics.batch_size


def _methods(study: Study, cell: Cell) -> dict[str, Values]:
    return {name: method.model_dump() for name, method in study.methods.items()}


def _ensemble_fits(study: Study, cell: Cell) -> dict[str, dict[str, Values]]:
    found: dict[str, dict[str, Values]] = {}
    for source, name in ensembles(study):
        found.setdefault(source, {})[name] = study.ensembles.sets[name].model_dump()
    return found


# Job -> setting -> function of the study and the cell. Jobs on one IC set or one network have further settings.
OF_CELL: dict[str, dict[str, Callable[[Study, Cell], Any]]] = {
    "train_backbone": {
        "arch": arch,
        "images": images,
        "root": lambda study, cell: study.data.root,
        "backbone": lambda study, cell: sections(study, cell).backbone.model_dump(),
        "distillation": distillation,
        "hardware": _hardware,
        "weights": lambda study, cell: file_stamp(sections(study, cell).backbone.path),
    },
    "train_ics": {
        "images": images,
        "build": build,
        "sets": lambda study, cell: ic_sets(study, cell, frozen_sets(study)),
        "hardware": _hardware,
    },
    "train_network": {"images": images, "build": build, "hardware": _hardware},
    "predict": {
        "images": images,
        "build": build,
        "sets": lambda study, cell: ic_sets(study, cell, study.ics.sets),
        "batch_size": _batch_size,
        "samples": lambda study, cell: fitted_samples(study),
        "splits": lambda study, cell: splits(study),
        "hardware": _hardware,
    },
    "predict_backbone": {
        "arch": arch,
        "images": images,
        "build": build,
        "batch_size": _batch_size,
        "splits": lambda study, cell: static_splits(study),
        "samples": lambda study, cell: fitted_samples(study),
        "hardware": _hardware,
    },
    "predict_int8": {
        "arch": arch,
        "images": images,
        "build": build,
        "splits": lambda study, cell: list(study.data.evaluated),
    },
    "fit_ensembles": {
        "ensembles": _ensemble_fits,
        "cascades": lambda study, cell: study.cascades,
        "from_logits": lambda study, cell: bool(study.logits),
    },
    "evaluate": {
        "build": build,
        "statics": statics,
        "sets": lambda study, cell: ic_sets(study, cell, [*frozen_sets(study), *joint_sets(study)]),
        "logits": lambda study, cell: (
            {name: s.model_dump() for name, s in study.logits.sets.items()} if study.logits else {}
        ),
        "methods": _methods,
        "evaluation": lambda study, cell: study.evaluation.model_dump(),
        "images": images,
    },
    "measure_latency": {
        "images": images,
        "build": build,
        "statics": statics,
        "sets": lambda study, cell: ic_sets(study, cell, study.ics.sets),
        "methods": _methods,
        "evaluation": lambda study, cell: study.evaluation.model_dump(),
        "latency": lambda study, cell: study.latency.model_dump(),
        "hardware": _hardware,
    },
}
