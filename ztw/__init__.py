"""A reference benchmark for early-exit neural networks. The public names are listed in `ztw.api`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ztw.version import __version__ as __version__

if TYPE_CHECKING:
    from ztw.api import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        """Import the public names on first use, so that checking a config does not import torch."""
        if name == "__all__":
            return __dir__()
        if not name.startswith("_") and name in vars(import_module("ztw.api")):
            return getattr(import_module("ztw.api"), name)
        raise AttributeError(f"module 'ztw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(name for name in vars(import_module("ztw.api")) if not name.startswith("_"))
