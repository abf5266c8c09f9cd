"""Load plugins: files and installed packages that register a user's parts.

This module imports no torch. A plugin may.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from ztw.catalogue.parts import PARTS, PLUGINS
from ztw.errors import ZtwError, unknown
from ztw.study.helpers import code_sha256, forget_helpers, helpers, import_again

GROUP = "ztw.plugins"  # entry-point group


def load_plugins(plugins: Iterable[str] | Mapping[str, str]) -> None:
    """Run each plugin once per process, and again after an edit of its file or of a helper.

    A helper is a user's file that a plugin imports (`ztw.study.helpers`).

    Args:
        plugins: entries of a study's key `plugins`; in a study's jobs, entry -> expected SHA-256.

    Raises:
        ZtwError: if a plugin is missing, fails (with its line number), registers nothing or has changed.
    """
    for name in plugins:
        path, files = _code_of(name)
        try:
            digest = code_sha256(files)
        except OSError as error:
            raise ZtwError(f"plugins: {name!r}: {error.strerror}") from error
        if isinstance(plugins, Mapping) and plugins[name] != digest:
            raise ZtwError(f"plugins: {name!r}: was edited while the study ran; run the study again")
        if PLUGINS.get(name) != digest:
            _load(name, path, files)
            PLUGINS[name] = digest


def plugin_file(name: str) -> Path:
    """Return the file of a plugin: `name` itself if it ends in .py, else the module of the entry point `name`.

    Raises:
        ZtwError: if there is no such entry point or module.
    """
    if name.endswith(".py"):
        return Path(name).expanduser().absolute()
    spec = find_spec(_entry_point(name))
    if spec is None or spec.origin is None:
        raise ZtwError(f"plugins: {name!r}: module {_entry_point(name)} not found; install the package again")
    return Path(spec.origin)


def _code_of(name: str) -> tuple[Path, dict[str, Path]]:
    """Return the file of a plugin, and name -> file of the plugin and its helpers."""
    path = plugin_file(name)
    try:
        return path, helpers(path, "" if name.endswith(".py") else _entry_point(name))
    except ZtwError as error:
        raise ZtwError(f"plugins: {name!r}: {error}") from error


def plugins_with(plugins: Iterable[str], kinds: Iterable[str]) -> dict[str, str]:
    """Return name -> SHA-256 of the loaded plugins that registered a part of one of the kinds."""
    wanted = set(kinds)
    registered_by = {part.plugin for (kind, _), part in PARTS.items() if kind in wanted}
    return {name: PLUGINS[name] for name in plugins if name in registered_by}


def _entry_point(name: str) -> str:
    from importlib.metadata import entry_points  # slow, and rarely needed

    found = {point.name: point.module for point in entry_points(group=GROUP)}
    if name not in found:
        known = [*found, "a file that ends in .py"]
        raise ZtwError(f"plugins: {unknown(f'entry point of {GROUP}', name, known)}")
    return found[name]


def _load(name: str, path: Path, files: Mapping[str, Path]) -> None:
    """Run a plugin; remove its parts if it fails."""
    forget(name)
    before = set(PARTS)
    import_again(set(files) - {"__main__"})
    # Write no .pyc beside a user's file, neither now nor when a function imports a helper later
    sys.dont_write_bytecode = True
    try:
        _run(name, path)
        if PARTS.keys() == before:
            raise ZtwError("registers nothing; call ztw.register(kind, name, part)")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # includes SystemExit
        for key in PARTS.keys() - before:
            PARTS.pop(key).remove()
        raise ZtwError(f"plugins: {name!r}{_fault(error, path)}") from error
    for key in PARTS.keys() - before:
        PARTS[key] = replace(PARTS[key], plugin=name)


def _run(name: str, path: Path) -> None:
    if not name.endswith(".py"):
        import_again({_entry_point(name)})
        importlib.import_module(_entry_point(name))
        return
    title = f"ztw_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"  # two files may have one name
    spec = spec_from_file_location(title, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[title] = module_from_spec(spec)
    spec.loader.exec_module(module)


def _fault(error: BaseException, path: Path) -> str:
    """Say where and why a plugin failed, for example ", line 3: NameError: ..."."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
        text = f"SyntaxError: {error.msg}"
    else:
        text = str(error) if isinstance(error, ZtwError) else f"{type(error).__name__}: {error}"
    return f"{f', line {lines[-1]}' if lines else ''}: {' '.join(text.split())}"


def forget(plugin: str | None = None) -> None:
    """Remove a plugin's parts from their tables; without a name, all registered parts."""
    for key, part in list(PARTS.items()):
        if plugin is None or part.plugin == plugin:
            part.remove()
            del PARTS[key]
    if plugin is None:
        PLUGINS.clear()
        forget_helpers()
    else:
        PLUGINS.pop(plugin, None)
