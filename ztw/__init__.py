"""A reference benchmark for early-exit neural networks. Its public names are listed in `__init__.pyi`."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ztw.version import __version__ as __version__


@cache
def _homes() -> dict[str, str]:
    """Return the module of each public name."""
    tree = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that checking a config does not import torch."""
    if name == "__all__":
        return __dir__()
    if name in _homes():
        return getattr(import_module(_homes()[name]), name)
    raise AttributeError(f"module 'ztw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_homes())
