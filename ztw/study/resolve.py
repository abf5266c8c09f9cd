"""Fill the keys of the sections into each IC set and ensemble."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from ztw.catalogue.parts import known
from ztw.errors import ZtwError, dotted
from ztw.study.section import Section
from ztw.study.settings import EnsembleFit, EnsemblesSettings
from ztw.study.training_settings import Anatomy, BackboneSettings, IcsSettings, Recipe

Given = dict[str, Any]


def as_given(value: Any, place: str = "config") -> Any:
    """Copy a config, with immutable tuples for lists.

    Raises:
        ZtwError: if a key is not text.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ZtwError(f"{place}: the key {key!r} is not text; put it in quotes")
        inner = "" if place == "config" else f"{place}."
        return {key: as_given(item, inner + dotted([key])) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(as_given(item, f"{place}.{index}") for index, item in enumerate(value))
    return value


def resolved(given: Given) -> Given:
    """Fill the keys of the sections into `ics.sets` and `ensembles.sets`.

    Leaves values of a wrong type alone; validation reports them.
    """
    study = copy.deepcopy(given)
    ics, ensembles = study.get("ics"), study.setdefault("ensembles", {})
    if isinstance(ics, dict) and isinstance(ics.get("sets"), dict):
        ics["sets"] = {name: _ic_set(study, own) for name, own in ics["sets"].items()}
    if isinstance(ensembles, dict) and isinstance(ensembles.setdefault("sets", {}), dict):
        _add_kinds(ensembles)
    return study


def recipe_home(own: Any) -> str:
    """Return the section with the default recipe of an IC set: `backbone` for joint training, else `ics`."""
    return "backbone" if isinstance(own, dict) and own.get("training") == "joint" else "ics"


def _ic_set(study: Given, own: Any) -> Any:
    if not isinstance(own, dict):
        return own
    section = BackboneSettings if recipe_home(own) == "backbone" else IcsSettings
    shared = _values(study["ics"], IcsSettings, Anatomy.model_fields)
    shared |= _values(study.get(recipe_home(own)), section, Recipe.model_fields)
    if own.get("schedule") == "one_cycle":
        shared["milestones"] = ()
    return {**shared, **own}


def _values(section: Any, kind: type[Section], keys: Iterable[str]) -> Given:
    """Return a section's values of the given keys, or their defaults. Leaves out missing keys without a default."""
    defaults = {
        key: kind.model_fields[key].default for key in keys if not kind.model_fields[key].is_required()
    }
    return defaults | {key: section[key] for key in keys if isinstance(section, dict) and key in section}


def _add_kinds(ensembles: Given) -> None:
    """Add a set for each kind of ensemble, so that methods can name the kind."""
    for name in ensembles["sets"]:
        if name in known("ensemble"):
            raise ZtwError(f"ensembles.sets.{name}: is the name of a kind of ensemble; choose another name")
    named = {kind: {"kind": kind} for kind in known("ensemble")} | ensembles["sets"]
    shared = _values(ensembles, EnsemblesSettings, EnsembleFit.model_fields)
    ensembles["sets"] = {
        name: {**shared, **own} if isinstance(own, dict) else own for name, own in named.items()
    }
