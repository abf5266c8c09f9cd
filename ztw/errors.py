"""The one exception for everything a user can put right."""

from __future__ import annotations

import re
from collections.abc import Iterable

# what a URI says before its host, as strictly written and with / or @ in the password, and secrets it may ask with
USER = re.compile(r"(?<=://)(?:[^\s/:@]+:(?!\d+[/?])\S*|[^\s/]+)@")
SECRETS = re.compile(r"(?i)(?<=[?&])([^\s=&]*(?:password|passwd|pwd|secret|token)[^\s=&]*)=[^\s&]*")


class ZtwError(ValueError):
    """A user's mistake or a broken input, told in one line: the thing, the bad value, what is allowed."""


def unknown(what: str, name: object, known: Iterable[str]) -> ZtwError:
    """The error for a name that is not in a table; lists the known ones."""
    return ZtwError(f"unknown {what} {name!r}; known: {', '.join(known)}")


def dotted(keys: Iterable[object]) -> str:
    """Where in a study, in one line whatever its keys hold."""
    return ".".join(str(key) if str(key).isprintable() else repr(key) for key in keys)


def without_password(text: str) -> str:
    """The text without the user names and passwords of the URIs in it."""
    return SECRETS.sub(r"\1=...", USER.sub("", text))
