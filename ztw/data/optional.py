"""Packages that only some data sets need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ztw.errors import ZtwError


def needed(module: str, package: str, what: str) -> ModuleType:
    """A module of an optional package; raises ZtwError, with what to install, where it is missing.

    package: its name for pip; what: needs it, e.g. "digits".
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ZtwError(
            f"{what}: needs {package}, which cannot be imported ({error}); install it, or all that the workflow"
            " needs: pip install 'ztw[workflow]'"
        ) from error
