"""Digests of the code and stamps of the files that a result depends on. Imports no torch."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.files import is_left_behind, leads_back
from ztw.version import __version__

ROOT = Path(__file__).parents[2]
# Modules that change no result: public names, the version (recorded in results), and paths
NAMES_ONLY = ("ztw", "ztw.version", "ztw.study.layout")
# Module -> imports that digests skip. `prepare` only restores lost files, and `splits` checks their SHA-256.
NOT_FOLLOWED = {"ztw.data.splits": {"ztw.data.prepare"}}
DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)  # nodes with a docstring


def folder_stamp(folder: Path | str, names: Sequence[str] = ("train", "test", "val")) -> str:
    """Return a digest that changes when a file below a folder is added, removed, renamed or overwritten.

    Reads path, size and modification time of every file: a few seconds for a million files. Ignores hidden files,
    files that operating systems create, and the path of the folder itself. names: the subfolders to include.
    """
    digest = hashlib.sha256()
    for name in names:
        _add_stamps(Path(folder).expanduser() / name, name, digest)
    return digest.hexdigest()[:16]


def _add_stamps(place: Path | str, below: str, digest: hashlib._Hash) -> None:
    """Add the stamps of all files below a folder. The job `prepare_dataset` reports a missing folder."""
    try:
        entries = sorted(os.scandir(place), key=attrgetter("name"))
    except OSError:  # missing, or a link in a cycle
        return
    lines = []
    for entry in entries:
        if entry.name.startswith(".") or is_left_behind(entry.name):
            continue
        name = f"{below}/{entry.name}"
        if entry.is_dir() and not (entry.is_symlink() and leads_back(entry)):
            _add_stamps(entry.path, name, digest)
        else:
            lines.append(f"{name}\0{file_stamp(entry)}\n")
    digest.update(os.fsencode("".join(lines)))


def file_stamp(path: os.DirEntry[str] | Path | str | None) -> str | None:
    """Return a text that changes when a file is replaced; None if there is no file."""
    try:
        if isinstance(path, os.DirEntry):
            found = path.stat()
        elif path is not None:
            found = Path(path).expanduser().stat()
        else:
            return None
    except OSError:
        return None
    return f"{found.st_size} {found.st_mtime_ns}"


def code_digest(job: str, root: Path = ROOT) -> str:
    """Return a digest of all code that a job runs: its script, `ztw.jobs.run`, its module and the modules it imports.

    Ignores comments, docstrings, formatting and descriptions of keys: only an edit of the code runs a job again.

    Args:
        job: name of the job's module in ztw.jobs.
        root: the folder that holds ztw/ and workflow/.
    """
    digest = hashlib.sha256()
    for module in import_closure(f"ztw.jobs.{job}", root):
        digest.update(module.encode() + _tree(module, root)[1])
    for caller in (root / f"workflow/scripts/{job}.py", root / "ztw/jobs/run.py"):
        if caller.exists():
            digest.update("\n".join(_code_and_imports(caller)[0]).encode())
    return digest.hexdigest()[:16]


def import_closure(module: str, root: Path = ROOT) -> list[str]:
    """List the modules of ztw that an import of `module` runs, sorted, `module` included, NAMES_ONLY left out.

    Reads the source only. Imports inside functions count; imports for type checkers (`if TYPE_CHECKING`) do not.

    Raises:
        ZtwError: if a module is missing.
    """
    found, todo = set(), [module]
    while todo:
        here = todo.pop()
        if here not in found and here not in NAMES_ONLY:
            found.add(here)
            todo += [here.rpartition(".")[0], *_tree(here, root)[0]]
    return sorted(found)


@cache
def _tree(module: str, root: Path) -> tuple[frozenset[str], bytes]:
    """Return a module's imports from ztw, and its code."""
    code, imports = _code_and_imports(_file(module, root))
    named: set[str] = set()
    for node in imports:
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        else:
            source = _source(node, module, root)
            named |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    named -= NOT_FOLLOWED.get(module, set())
    ours = {name for name in named if name.split(".")[0] == "ztw" and _exists(name, root)}
    return frozenset(ours), "\n".join(code).encode()


def _code_and_imports(path: Path) -> tuple[list[str], list[ast.Import | ast.ImportFrom]]:
    """Return a file's code and imports, as `_walk` collects them."""
    code: list[str] = []
    imports: list[ast.Import | ast.ImportFrom] = []
    _walk(ast.parse(path.read_text(encoding="utf-8")), code, imports)
    return code, imports


def _walk(node: Any, code: list[str], imports: list[ast.Import | ast.ImportFrom]) -> None:
    """Collect code and imports, without docstrings, imports for type checkers and descriptions of keys."""
    if isinstance(node, list):
        code.append("[")
        for item in node:
            _walk(item, code, imports)
        code.append("]")
    elif not isinstance(node, ast.AST):
        code.append(repr(node))
    elif not _only_for_types(node):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.append(node)
        code.append(type(node).__name__)
        for field in node._fields:
            _walk(_without_description(node, field), code, imports)


def _only_for_types(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    return "TYPE_CHECKING" in (getattr(node.test, "id", ""), getattr(node.test, "attr", ""))


def _without_description(node: ast.AST, field: str) -> Any:
    """Return a field of a node without its docstring or its description of a key."""
    value = getattr(node, field, None)
    if not isinstance(value, list) or not value:
        return value
    first = None
    if field == "args" and getattr(getattr(node, "func", None), "id", "") == "key":
        first = value[0]
    elif field == "body" and isinstance(value[0], ast.Expr) and isinstance(node, DESCRIBED):
        first = value[0].value
    return value[1:] if isinstance(first, ast.Constant) and isinstance(first.value, str) else value


def _source(node: ast.ImportFrom, module: str, root: Path) -> str:
    """Return the absolute name of the module after `from`."""
    if not node.level:
        return node.module or ""
    package = module if _file(module, root).name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


def _exists(module: str, root: Path) -> bool:
    path = root / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _file(module: str, root: Path) -> Path:
    if not _exists(module, root):
        raise ZtwError(f"code digest: module {module} is missing")
    path = root / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def code_version() -> str:
    """Return the package's version and, in a git checkout, the commit; "+dirty" marks uncommitted changes."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__} {commit}"
