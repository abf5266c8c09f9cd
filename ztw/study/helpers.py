"""Helper modules of plugins: found without running them, hashed with the plugin. Imports no torch."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from ztw.errors import ZtwError
from ztw.files import sha256

LOADERS = ((ExtensionFileLoader, EXTENSION_SUFFIXES), (SourceFileLoader, SOURCE_SUFFIXES))
INSTALLED = {"site-packages", "dist-packages"}  # the environment's lock records their contents
IMPORTERS = {"import_module", "__import__"}  # functions that import a module by name


class Place(NamedTuple):
    """The file of a module, None for a package without __init__.py, and the folders of a package."""

    file: Path | None
    folders: tuple[str, ...] = ()


def helpers(path: Path, module: str = "") -> dict[str, Place]:
    """Find the user's own modules that a file imports, directly or through each other.

    Leaves out the standard library, installed packages and ztw. Includes imports inside functions. Looks beside
    the file first, as Python does for a script. Cannot see computed names (`import_module(name)`).

    Args:
        module: the name that Python imports an installed file by.

    Returns:
        name -> place, with the module's own name.
    """
    package = _package(path, module)
    beside = "" if package else str(path.parent)
    found: dict[str, Place] = {}
    seen: set[str] = set()
    todo = {module, package, *_imported(path, package)}
    while todo:
        name = todo.pop()
        if not name or name in seen or name.split(".")[0] == "ztw":
            continue
        seen.add(name)
        place = _place(name, beside)
        if place is not None and _is_own(place):
            found[name] = place
            todo.add(name.rpartition(".")[0])
            if place.file is not None:
                todo |= set(_imported(place.file, _package(place.file, name)))
    return found


def code_sha256(path: Path, found: Mapping[str, Place]) -> str:
    """Return the SHA-256 of a file and its helpers; without helpers, that of the file.

    Raises:
        OSError: if a file cannot be read.
    """
    files = {name: place.file for name, place in found.items() if place.file not in (None, path)}
    own = sha256(path)
    if not files:
        return own
    lines = [own, *(f"{name} {sha256(file)}" for name, file in sorted(files.items()) if file is not None)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_names(found: Mapping[str, Place]) -> None:
    """Check that no other module has the name of a helper.

    Raises:
        ZtwError: if Python would import the other module.
    """
    for name, place in found.items():
        if place.file is None:
            continue
        other = None
        if name in sys.stdlib_module_names:
            other = "a module of the standard library"
        elif (loaded := getattr(sys.modules.get(name), "__file__", None)) and _differ(loaded, place.file):
            other = loaded
        elif "." not in name and (spec := _search(name)) and not _is_own(at := _at(spec)):
            other = str(at.file)
        if other is not None:
            raise ZtwError(f"imports {name}: both {place.file} and {other} have this name; rename the first")


class FromSource(SourceFileLoader):
    """Loader that ignores .pyc files: Python compares their times in whole seconds only."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the current file."""
        return self.source_to_code(self.get_data(self.path), self.path)


class Helpers:
    """Importer for the helpers of all loaded plugins: the code that runs is the code that was hashed."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.read: dict[str, str | None] = {}  # name -> SHA-256 of the file when it was added

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """Find a helper; None for any other module."""
        if name not in self.places:
            return None
        file, folders = self.places[name]
        if file is None:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = list(folders)
            return spec
        loader = FromSource(name, str(file)) if file.suffix == ".py" else None
        return importlib.util.spec_from_file_location(
            name, file, loader=loader, submodule_search_locations=list(folders) or None
        )

    def take_up(self, found: Mapping[str, Place]) -> None:
        """Import these helpers from now on. If one has changed, import all again."""
        now = {name: sha256(place.file) if place.file else None for name, place in found.items()}
        if any(self.read.get(name, digest) != digest for name, digest in now.items()):
            self.forget()
        self.places |= found
        self.read |= now
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def forget(self) -> None:
        """Drop all helpers, imported ones included."""
        for name in self.places:
            sys.modules.pop(name, None)
        self.places.clear()
        self.read.clear()


HELPERS = Helpers()


def find_module(name: str) -> Place | None:
    """Find a module without importing it or its packages."""
    return _place(name, "")


def _place(name: str, beside: str) -> Place | None:
    package = name.rpartition(".")[0]
    if package:
        above = _place(package, beside)
        return None if above is None else _below(name, above.folders)
    near = _below(name, [beside]) if beside else None
    if near is not None and near.file is not None:
        return near
    if name in sys.stdlib_module_names:
        return None
    spec = _search(name)
    return near if spec is None else _at(spec)


def _below(name: str, folders: Sequence[str]) -> Place | None:
    """Find a module in folders. A folder without __init__.py counts only if no folder has the module."""
    bare: list[str] = []
    for folder in folders:
        spec = FileFinder(folder, *LOADERS).find_spec(name)
        if spec is not None and spec.loader is not None:
            return _at(spec)
        bare += (spec and spec.submodule_search_locations) or []
    return Place(None, tuple(bare)) if bare else None


def _search(name: str) -> ModuleSpec | None:
    """Find a module as Python would, without our importer."""
    for importer in sys.meta_path:
        if importer is not HELPERS and hasattr(importer, "find_spec"):
            spec = importer.find_spec(name, None)
            if spec is not None:
                return spec
    return None


def _at(spec: ModuleSpec) -> Place:
    file = Path(spec.origin).absolute() if spec.has_location and spec.origin else None
    return Place(file, tuple(spec.submodule_search_locations or ()))


def _is_own(place: Place) -> bool:
    paths = [place.file] if place.file is not None else [Path(folder) for folder in place.folders]
    return any(not INSTALLED & set(path.parts) for path in paths)


def _differ(one: str, other: Path) -> bool:

    return Path(one).exists() and not Path(one).samefile(other)


def _package(path: Path, module: str) -> str:
    """Return the package that relative imports start from."""
    return module if path.stem == "__init__" else module.rpartition(".")[0]


def _imported(path: Path, package: str) -> Iterator[str]:
    """Yield the names that a file may import; some are not modules."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # reported when the file is hashed or run
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute("." * node.level + (node.module or ""), package)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in IMPORTERS and isinstance(node.args[0].value, str):
                yield _absolute(node.args[0].value, package)


def _absolute(name: str, package: str) -> str:
    """Return an import's absolute name; "" if it leaves the top package."""
    try:
        return importlib.util.resolve_name(name, package) if name.startswith(".") else name
    except ImportError:
        return ""
