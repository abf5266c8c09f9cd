"""Resolve a study for each cell: apply its overrides, then check all settings together. Imports no torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import product
from typing import Any

from ztw.errors import ZtwError
from ztw.study.checks import check_cell, check_honest, check_names, check_set
from ztw.study.logits_checks import logits_cells
from ztw.study.resolve import Given, recipe_home, resolved
from ztw.study.settings import CellSettings, Study
from ztw.study.training_settings import Recipe
from ztw.study.validate import validated

_SECTIONS = ("data", "backbone", "ics")
Cells = dict[tuple[str, str], CellSettings]


def study_cells(given: Given, study: Study) -> Cells:
    """Resolve the settings of every cell, static networks included.

    Args:
        given: the study as written in its file.

    Returns:
        (data set, architecture) -> settings.

    Raises:
        ZtwError: if a check fails or an override matches no cell.
    """
    if study.logits:
        return logits_cells(given, study)
    check_names(study)
    cells, used = {}, set()
    networks = {arch: arch for arch in study.archs} | study.statics
    for dataset, network in product(study.datasets, networks):
        arch = networks[network]
        applied = [i for i, item in enumerate(study.overrides) if item.holds_for(dataset, arch)]
        try:
            cells[dataset, network] = _cell(given, study, applied, (dataset, arch), network)
        except ZtwError as error:
            raise ZtwError(
                f"{error} (after overrides, {dataset}/{arch})" if applied else str(error)
            ) from error
        used |= set(applied)
    for index in range(len(study.overrides)):
        if index not in used:
            raise ZtwError(f"overrides.{index}: matches no data set and architecture of this study")
    return cells


def _cell(
    given: Given, study: Study, applied: list[int], names: tuple[str, str], network: str
) -> CellSettings:
    merged, here = copy.deepcopy(given), study
    for index in applied:
        _merge(merged, {k: v for k, v in given["overrides"][index].items() if k in _SECTIONS})
    row = study.methods.get(network)
    own = row.own_training if row else {}
    if own:
        _merge(merged, {"backbone": own | ({"milestones": ()} if _drops_milestones(own) else {})})
    if applied or own:
        here = validated(resolved(merged))
        _check_same_for_all(study, here)
    check_cell(here, *names, row=network if own else None)
    check_honest(here)
    if network not in study.archs:  # a static network has no ICs
        return CellSettings(here.data, here.backbone, here.ics)
    for name, ics in here.ics.sets.items():
        own = merged["ics"]["sets"][name]

        def label(key: str, name: str = name, own: Given = own) -> str:
            home = recipe_home(own) if key in Recipe.model_fields else "ics"
            return f"ics.sets.{name}.{key}" if key in own else f"{home}.{key}"

        check_set(name, ics, names[1], label)
    return CellSettings(here.data, here.backbone, here.ics)


def _drops_milestones(own: Given) -> bool:
    """Return whether a recipe of its own changes to a schedule without milestones."""
    return own.get("schedule") == "one_cycle" and "milestones" not in own


def _check_same_for_all(study: Study, here: Study) -> None:
    """Refuse overrides of settings that all cells share: the workflow has the same jobs for every cell."""
    for key in ("root", "image_folders"):
        if getattr(here.data, key) != getattr(study.data, key):
            raise ZtwError(f"data.{key}: must be the same for all cells; set it under data, not in overrides")
    for name, ics in here.ics.sets.items():
        if name not in study.ics.sets:
            raise ZtwError(f"ics.sets.{name}: must exist for all cells; add it under ics, not in overrides")
        if ics.training != study.ics.sets[name].training:
            raise ZtwError(f"ics.sets.{name}.training: must be the same for all cells; add another IC set")


def _merge(target: Given, changes: Mapping[str, Any]) -> None:
    """Write nested `changes` over `target`."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)
