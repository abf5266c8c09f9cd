"""Find the user's own files that a plugin imports, without running them. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from modulefinder import Module, ModuleFinder
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.files import sha256

INSTALLED = {"site-packages", "dist-packages"}  # folders of packages with locked versions
NAMESPACE = 0  # our kind for a package without __init__.py, which ModuleFinder does not support

_added: list[str] = []  # folders of plugins on the module search path
_used: set[str] = set()  # helpers that plugins have imported


def helpers(path: Path, module: str = "") -> dict[str, Path]:
    """Find the user's own modules that a file imports, directly or through each other.

    Leaves out the standard library, installed packages and ztw. Includes imports inside functions, but not imports by
    a computed name (`import_module(name)`). Adds the file's folder to the end of the module search path.

    Args:
        module: the file's module name; "" for a file outside of packages.

    Returns:
        Name -> file, the file itself included.

    Raises:
        ZtwError: if a module beside the file has the name of a module that Python would import instead.
    """
    package = module if "." in module or path.stem == "__init__" else ""
    if not package and (folder := str(path.parent)) not in sys.path:
        sys.path.append(folder)
        _added.append(folder)
    importlib.invalidate_caches()
    finder = _Finder(None if package else path.parent)
    try:
        finder.import_hook(package) if package else finder.run_script(str(path))
    except ZtwError:
        raise
    except (OSError, SyntaxError, ValueError, ImportError):  # reported when the file is hashed or run
        return {"__main__": path}
    modules: dict[str, Any] = finder.modules
    return {name: Path(module.__file__) for name, module in modules.items() if module.__file__}


def code_sha256(files: dict[str, Path]) -> str:
    """Return one SHA-256 of the result of `helpers`; for a file without helpers, the file's own SHA-256.

    Raises:
        OSError: if a file cannot be read.
    """
    if len(files) == 1:
        return sha256(next(iter(files.values())))
    lines = [f"{name} {sha256(file)}" for name, file in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def import_again(names: set[str]) -> None:
    """Remove helpers from Python's module cache, so that the next import runs them again."""
    for name in list(names):
        parts = name.split(".")
        for count in range(len(parts)):  # a package keeps references to its modules
            sys.modules.pop(".".join(parts[: count + 1]), None)
    _used.update(names)


def forget_helpers() -> None:
    """Remove all helpers from Python's module cache, and the folders of plugins from the module search path."""
    import_again(_used)
    _used.clear()
    sys.path[:] = [folder for folder in sys.path if folder not in _added]
    _added.clear()


class _Finder(ModuleFinder):
    """Follow the imports of a file into the user's own modules."""

    def __init__(self, beside: Path | None) -> None:
        super().__init__()
        self.beside = beside

    def find_module(self, name: str, path: Any, parent: Module | None = None) -> Any:
        """Find a module of the user's as Python would; raise ImportError for any other module."""
        if path is None:
            path = self._folders(name)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is None:
            return None, list(spec.submodule_search_locations or ()), ("", "", NAMESPACE)
        return super().find_module(name, path, parent)

    def load_module(self, fqname: str, fp: Any, pathname: Any, file_info: Any) -> Module:
        """Load a module, or a package without __init__.py."""
        if file_info[2] != NAMESPACE:
            return super().load_module(fqname, fp, pathname, file_info)
        package: Any = self.add_module(fqname)
        package.__path__ = pathname
        return package

    def _folders(self, name: str) -> list[str]:
        """Find the folders that hold a top-level module of the user's own."""
        spec = None if name in (*sys.stdlib_module_names, "ztw") else _spec(name)
        origin = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
        near = None
        if self.beside is not None:
            beside = (self.beside / f"{name}.py", self.beside / name / "__init__.py")
            near = next((file for file in beside if file.is_file()), None)
        if near and not (origin and Path(origin).exists() and near.samefile(origin)):
            other = origin or "the standard library"
            raise ZtwError(f"imports {name}: both {near} and {other} have this name; rename your file")
        if spec is None or origin is None or INSTALLED & set(Path(origin).parts):
            raise ImportError(name=name)
        return [str(Path(place).parent) for place in spec.submodule_search_locations or [origin]]


def _spec(name: str) -> Any:
    try:
        return find_spec(name)
    except (ImportError, ValueError):
        return None
