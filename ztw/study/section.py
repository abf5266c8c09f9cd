"""The base class of a study's sections, and types that several keys share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from ztw.catalogue.parts import BUILT_IN


class Section(BaseModel):
    """Base class of a study's sections: strict types, no unknown keys, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def key(description: str, default: Any = ..., **limits: Any) -> Any:
    """Define a key of a section.

    Args:
        description: the meaning, for the manual.
        default: `...` = required.
        limits: as in pydantic's `Field`, and `unit`, the unit of a number.
    """
    unit = limits.pop("unit", None)
    extra = {"unit": unit} if unit else None
    return Field(default, description=description, json_schema_extra=extra, **limits)


T = TypeVar("T")


def _each_once(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("twice", "has a value twice; list each value once")
    return values


Unique = Annotated[tuple[T, ...], AfterValidator(_each_once)]
Listed = Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(_each_once)]
# Names are used as file names
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


def part(kind: str) -> WithJsonSchema:
    """Offer an editor the built-in parts of a kind; other names are checked later, when plugins are loaded."""
    return WithJsonSchema({"anyOf": [{"enum": list(BUILT_IN[kind])}, {"type": "string"}]})


def one_of(kinds: str, accepts: Callable[[Any], bool], schema: dict[str, Any]) -> tuple[Any, ...]:
    """Validate a key of several types with one error message; pydantic would raise one error per type.

    Args:
        kinds: the allowed values in words, for the error.
        accepts: returns whether a value is allowed.
    """

    def check(value: Any) -> Any:
        if not accepts(value):
            raise PydanticCustomError("kinds", "must be {kinds}", {"kinds": kinds})
        return value

    return PlainValidator(check), PlainSerializer(lambda value: value), WithJsonSchema(schema)
