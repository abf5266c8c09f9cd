"""The one exception for everything a user can put right."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeGuard

# what a URI says before its host, as strictly written and with / or @ in the password, and secrets it may ask with
USER = re.compile(r"(?<=://)(?:[^\s/:@]+:(?!\d+[/?])\S*|[^\s/]+)@")
SECRETS = re.compile(r"(?i)(?<=[?&])([^\s=&]*(?:password|passwd|pwd|secret|token)[^\s=&]*)=[^\s&]*")


class ZtwError(ValueError):
    """A user's mistake or a broken input, told in one line: the thing, the bad value, what is allowed."""


def unknown(what: str, name: object, known: Iterable[str]) -> ZtwError:
    """The error for a name that is not in a table; lists the known ones."""
    return ZtwError(f"unknown {what} {name!r}; known: {', '.join(known)}")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a real number, numpy's too; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def dotted(keys: Iterable[object]) -> str:
    """Where in a study, in one line whatever its keys hold."""
    return ".".join(str(key) if str(key).isprintable() else repr(key) for key in keys)


def reason(error: BaseException, *named: object) -> str:
    """Say in one line why something failed, without the paths that the message around it names.

    named: paths and URLs that the message names.
    """
    if isinstance(cause := getattr(error, "reason", None), OSError):  # of urllib
        return reason(cause, *named)
    text, names = " ".join(str(error).split()), [str(name) for name in named]
    if isinstance(error, OSError) and error.strerror:
        path = str(error.filename or "")
        told = any(name.endswith(path) or path.endswith(name) for name in names)
        return error.strerror if told or not path else f"{error.strerror}: {path}"
    for name in names:
        text = re.sub(rf":? ?(?:{re.escape(repr(name))}|{re.escape(name)})(?=[\s,;:)]|$)", "", text)
    return text or type(error).__name__


def without_password(text: str) -> str:
    """The text without the user names and passwords of the URIs in it."""
    return SECRETS.sub(r"\1=...", USER.sub("", text))
