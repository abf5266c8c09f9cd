"""What a study's config means for each cell: overrides merged, IC sets and ensembles filled in.

Imports no torch: a config must be refused at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from ztw.errors import ZtwError
from ztw.study.checks import (
    check_cell,
    check_honest,
    check_names,
    check_placement,
    check_recipe,
    check_regime,
)
from ztw.study.names import ANATOMY, ENSEMBLE_KINDS, RECIPE, Config

_SECTIONS = ("data", "backbone", "ics")


def study_cells(config: Config, validate: Callable[[Config], None]) -> dict[tuple[str, str], Config]:
    """(data set, architecture) -> the sections `data`, `backbone`, `ics` that hold there.

    config: with its defaults filled in; validate: raises ZtwError for what the schema refuses.
    Every set of `ics.sets` comes out complete: its anatomy, its regime and its own recipe.
    """
    check_names(config)
    cells, used = {}, set()
    for dataset, arch in product(config["datasets"], config["archs"]):
        merged = copy.deepcopy(config)
        applied = [i for i, item in enumerate(config["overrides"]) if _matches(item, dataset, arch)]
        try:
            for index in applied:
                _merge(merged, {k: v for k, v in config["overrides"][index].items() if k in _SECTIONS})
            if applied:
                validate(merged)
            check_cell(merged, dataset, arch)
            check_honest(merged)
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
        check_recipe(whole, label)
        check_placement(whole["placement"], arch, label("placement"))
        check_regime(name, whole, arch)
        recipe = {key: whole.pop(key) for key in RECIPE}
        complete[name] = {**whole, "recipe": recipe}
    return complete
