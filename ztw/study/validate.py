"""Validate a study against its definition; report the first error in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ztw.errors import ZtwError, dotted
from ztw.study.section import Section
from ztw.study.settings import Study

TYPES = {
    "int_type": "integer",
    "float_type": "number",
    "finite_number": "number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "list",
    "dict_type": "mapping",
    "model_type": "mapping",
}
LIMITS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def validated(resolved: dict[str, Any]) -> Study:
    """Return the typed study.

    Raises:
        ZtwError: for one error; a section's errors come before its IC sets' errors.
    """
    try:
        return Study.model_validate(resolved)
    except ValidationError as error:
        every = error.errors(include_url=False)
        # pydantic reports a list whose items are wrong as too short, too
        found = [one for one in every if one["type"] != "too_short" or not _has_inner(one, every)]
        raise ZtwError(describe(min(found, key=lambda one: len(one["loc"])))) from None


def describe(error: ErrorDetails) -> str:
    """Describe an error in one line: key, value, what is allowed."""
    loc = [part for part in error["loc"] if part != "[key]"]
    place, value, context = dotted(loc), as_written(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            known = _known_keys(loc[:-1])
            return f"{place}: unknown key; known: {', '.join(known)}{did_you_mean(loc[-1], known)}"
        case "missing":
            return f"{dotted(loc[:-1]) or 'config'}: the key {loc[-1]!r} is missing"
        case "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"])
            return f"{place}: {value!r} is unknown; known: {', '.join(known)}{did_you_mean(value, known)}"
        case "too_short" if not value:
            return f"{place}: is empty, must name at least {_counted(context['min_length'])}"
        case "too_short":
            return f"{place}: {value!r} must name at least {_counted(context['min_length'])}"
        case "twice":
            return f"{place}: {value!r} {error['msg']}"
        case "string_pattern_mismatch":
            return f"{place}: {value!r} must match {context['pattern']}"
        case "kinds":
            return f"{place}: {value!r} {error['msg']}{_number_hint(value)}"
        case kind if kind in LIMITS:
            limit = next(iter(context.values()))
            return f"{place}: {value!r} must be {LIMITS[kind]} {limit:g}"
        case kind if kind in TYPES:
            hint = _number_hint(value, kind == "int_type") if kind in ("int_type", "float_type") else ""
            return f"{place}: {value!r} is not of type {TYPES[kind]}{hint}"
    return f"{place}: {value!r}: {error['msg']}"


def _has_inner(error: ErrorDetails, every: Sequence[ErrorDetails]) -> bool:
    """Return whether another error is about an item of the same list."""
    place = error["loc"]
    return any(len(one["loc"]) > len(place) and one["loc"][: len(place)] == place for one in every)


def _counted(number: int) -> str:
    return "one" if number == 1 else str(number)


def as_written(value: Any) -> Any:
    """Return a value as the study's file writes it: tuples become lists."""
    return [as_written(item) for item in value] if isinstance(value, tuple) else value


def did_you_mean(name: object, known: Sequence[str]) -> str:
    """Suggest the closest known name, if there is one."""
    near = get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _known_keys(path: Sequence[Any]) -> list[str]:
    """List the keys of the section at a path."""
    kind: Any = Study
    # The next part is a user's name or a list index. A method may have the name of a key.
    is_name = False
    for part in path:
        if is_name or part not in kind.model_fields:
            is_name = False
            continue
        annotation = kind.model_fields[part].annotation
        kind = _section_in(annotation)
        is_name = get_origin(annotation) in (dict, tuple)
    return list(kind.model_fields)


def _section_in(annotation: Any) -> Any:
    """Return the section in a field's type, also inside a mapping or list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)


def _number_hint(value: Any, integer: bool = False) -> str:
    """Explain a number in text: YAML 1.1 reads 1e-3 as text."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return ""
    if number is None:
        return ""
    plain = int(number) if integer and number.is_integer() else number
    return f" (YAML reads it as text: write {plain!r}, or with a point as in 1.0e-3)"
