"""Define the exception for errors that a user can fix, and helpers for its messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeGuard

# User name and password of a URI, even if the password has an unescaped / or @; and secrets in the URI's query
USER = re.compile(r"(?<=://)(?:[^\s/:@]+:(?!\d+[/?])\S*|[^\s/]+)@")
SECRETS = re.compile(r"(?i)(?<=[?&])([^\s=&]*(?:password|passwd|pwd|secret|token)[^\s=&]*)=[^\s&]*")


class ZtwError(ValueError):
    """An error that the user can fix. The message is one line: what is wrong, the bad value and what is allowed.

    Example:
        >>> import ztw
        >>> ztw.build_backbone("resnet9")
        Traceback (most recent call last):
        ztw.errors.ZtwError: unknown architecture 'resnet9'; known: resnet8, resnet14, ...
    """


def unknown(what: str, name: object, known: Iterable[str]) -> ZtwError:
    """Return the error for an unknown name. Its message lists the known names."""
    return ZtwError(f"unknown {what} {name!r}; known: {', '.join(known)}")


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a real number, numpy's included; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def dotted(keys: Iterable[object]) -> str:
    """Join the keys of a study to one printable path, e.g. `training.epochs`."""
    return ".".join(str(key) if str(key).isprintable() else repr(key) for key in keys)


def reason(error: BaseException, *named: object) -> str:
    """Describe an error in one line, without the paths and URLs `named`, which the caller's message already has."""
    if isinstance(cause := getattr(error, "reason", None), OSError):  # urllib wraps the cause
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
    """Remove user names, passwords and secrets from the URIs in a text."""
    return SECRETS.sub(r"\1=...", USER.sub("", text))
