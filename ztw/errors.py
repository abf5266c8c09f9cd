"""The one exception for everything a user can put right."""

from __future__ import annotations

from collections.abc import Iterable


class ZtwError(ValueError):
    """A user's mistake or a broken input, told in one line: the thing, the bad value, what is allowed."""


def unknown(what: str, name: object, known: Iterable[str]) -> ZtwError:
    """The error for a name that is not in a table; lists the known ones."""
    return ZtwError(f"unknown {what} {name!r}; known: {', '.join(known)}")
