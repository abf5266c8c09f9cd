"""From a study as given to one in which every IC set and every ensemble says all of its keys."""

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
    """A copy with lists as tuples, for nothing in a study changes; raises ZtwError for a name that is not text."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ZtwError(f"{place}: the name {key!r} is not text; put it in quotes")
        inner = "" if place == "config" else f"{place}."
        return {key: as_given(item, inner + dotted([key])) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(as_given(item, f"{place}.{index}") for index, item in enumerate(value))
    return value


def resolved(given: Given) -> Given:
    """The study with what its sections say for all filled into `ics.sets` and `ensembles.sets`.

    What is of a wrong type stays as it is: validation names it.
    """
    study = copy.deepcopy(given)
    ics, ensembles = study.get("ics"), study.setdefault("ensembles", {})
    if isinstance(ics, dict) and isinstance(ics.get("sets"), dict):
        ics["sets"] = {name: _ic_set(study, own) for name, own in ics["sets"].items()}
    if isinstance(ensembles, dict) and isinstance(ensembles.setdefault("sets", {}), dict):
        _add_kinds(ensembles)
    return study


def recipe_home(own: Any) -> str:
    """The section that says the recipe of an IC set where the set does not: a joint training's is the backbone's."""
    return "backbone" if isinstance(own, dict) and own.get("training") == "joint" else "ics"


def _ic_set(study: Given, own: Any) -> Any:
    if not isinstance(own, dict):
        return own
    section = BackboneSettings if recipe_home(own) == "backbone" else IcsSettings
    shared = _says(study["ics"], IcsSettings, Anatomy.model_fields)
    shared |= _says(study.get(recipe_home(own)), section, Recipe.model_fields)
    if own.get("schedule") == "one_cycle":
        shared["milestones"] = ()
    return {**shared, **own}


def _says(section: Any, kind: type[Section], keys: Iterable[str]) -> Given:
    """What a section says of some keys, its defaults where it does not; nothing of keys that must be given."""
    defaults = {
        key: kind.model_fields[key].default for key in keys if not kind.model_fields[key].is_required()
    }
    return defaults | {key: section[key] for key in keys if isinstance(section, dict) and key in section}


def _add_kinds(ensembles: Given) -> None:
    """The plain kinds can be named as they are."""
    for name in ensembles["sets"]:
        if name in known("ensemble"):
            raise ZtwError(f"ensembles.sets.{name}: is the name of a kind; choose another")
    named = {kind: {"kind": kind} for kind in known("ensemble")} | ensembles["sets"]
    shared = _says(ensembles, EnsemblesSettings, EnsembleFit.model_fields)
    ensembles["sets"] = {
        name: {**shared, **own} if isinstance(own, dict) else own for name, own in named.items()
    }
