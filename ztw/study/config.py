"""A study's config: filled with defaults and checked before anything runs. Imports no torch: it must be quick."""

from __future__ import annotations

import copy
import json
import math
from typing import Any, cast

from jsonschema import Draft202012Validator, ValidationError, validators

from ztw.errors import ZtwError
from ztw.study.overrides import complete_ensembles, study_cells


def _integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # 1.0 is none: it would break later


def _number(_: object, value: object) -> bool:
    return _integer(_, value) or (isinstance(value, float) and math.isfinite(value))


Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _integer).redefine("number", _number),
)


def check_config(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the config with every default filled in.

    config: as read from YAML; schema: workflow/schemas/config.schema.yaml. The result has one more
    key, `cells`: (data set, architecture) -> the sections that hold there, see `ztw.cells.study_cells`.
    Raises ZtwError: one line that names the key, the value and what is allowed.
    """
    filled = copy.deepcopy(config)

    def validate(part: dict[str, Any]) -> None:
        errors = sorted(Validator(schema).iter_errors(part), key=lambda error: error.json_path)
        if errors:
            raise ZtwError(_describe(errors[0]))

    _fill(filled, schema)
    validate(filled)
    complete_ensembles(filled)
    _check_tracking(filled)
    return {**filled, "cells": study_cells(filled, validate)}


def _fill(config: Any, schema: dict[str, Any]) -> None:
    """Set the schema's defaults, in place, however deep."""
    if not isinstance(config, dict):
        return
    for key, part in schema.get("properties", {}).items():
        if key not in config and "default" in part:
            config[key] = copy.deepcopy(part["default"])
        if key in config:
            _fill(config[key], part)
    if isinstance(schema.get("additionalProperties"), dict):
        for value in config.values():
            _fill(value, schema["additionalProperties"])


def _describe(error: ValidationError) -> str:
    """A schema error as one line: key, value, what is allowed."""
    key = ".".join(map(str, error.absolute_path)) or "config"
    value, rule = cast(Any, error.instance), cast(Any, error.validator_value)
    match error.validator:
        case "additionalProperties":
            known = error.schema["properties"]  # type: ignore[index]
            extra = sorted(set(value) - set(known))[0]
            place = f"{key}.{extra}" if error.absolute_path else extra
            return f"{place}: unknown key; known: {', '.join(known)}"
        case "required":
            missing = next(name for name in rule if name not in value)
            return f"{key}: the key {missing!r} is missing"
        case "enum":
            known = ", ".join(item if isinstance(item, str) else json.dumps(item) for item in rule)
            return f"{key}: {value!r} is unknown; known: {known}"
        case "type":
            wanted = " or ".join(rule) if isinstance(rule, list) else rule
            return f"{key}: {value!r} is not of type {wanted}{_number_hint(value, wanted)}"
        case "minItems" | "minProperties":
            return f"{key}: is empty, must name at least one"
        case "uniqueItems":
            return f"{key}: {value!r} names something twice; each may stand once"
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            sign = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
            return f"{key}: {value!r} must be {sign[error.validator]} {rule}"
        case _:
            return f"{key}: {value!r} must match {rule}{_number_hint(value, 'number')}"


def _number_hint(value: Any, wanted: str) -> str:
    """YAML 1.1 reads 1e-3 as text."""
    if not isinstance(value, str) or not ("number" in wanted or "integer" in wanted):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    plain = int(number) if "integer" in wanted and number.is_integer() else number
    return f" (YAML reads it as text: write {plain!r}, or with a point as in 1.0e-3)"


def _check_tracking(config: dict[str, Any]) -> None:
    tracking = config["tracking"]
    if tracking not in ("sqlite", "none") and "://" not in tracking:
        raise ZtwError(f"tracking: {tracking!r} is unknown; known: sqlite, none, or a tracking server's URI")
