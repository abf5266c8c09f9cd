"""What every section of a study is made of: frozen, closed models, and the types that several keys share."""

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
    """A section of a study: unknown keys are refused, a number is no text, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def key(description: str, default: Any = ..., **limits: Any) -> Any:
    """A key of a section; limits: as pydantic's Field has them; unit= says what a number counts."""
    unit = limits.pop("unit", None)
    extra = {"unit": unit} if unit else None
    return Field(default, description=description, json_schema_extra=extra, **limits)


T = TypeVar("T")


def _each_once(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("twice", "names something twice; each may stand once")
    return values


Unique = Annotated[tuple[T, ...], AfterValidator(_each_once)]
Listed = Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(_each_once)]
# Names become file names
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


def part(kind: str) -> WithJsonSchema:
    """For a key that names a part: an editor offers the built-in ones; a user's own are known once it is loaded."""
    return WithJsonSchema({"anyOf": [{"enum": list(BUILT_IN[kind])}, {"type": "string"}]})


def one_of(kinds: str, accepts: Callable[[Any], bool], schema: dict[str, Any]) -> tuple[Any, ...]:
    """For a key of several types, which pydantic would tell apart in as many errors; kinds: what is allowed."""

    def check(value: Any) -> Any:
        if not accepts(value):
            raise PydanticCustomError("kinds", "must be {kinds}", {"kinds": kinds})
        return value

    return PlainValidator(check), PlainSerializer(lambda value: value), WithJsonSchema(schema)
