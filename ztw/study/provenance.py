"""What code a result comes from. Imports no torch."""

from __future__ import annotations

import ast
import hashlib
import subprocess
from functools import cache
from pathlib import Path
from typing import NoReturn

from ztw.errors import ZtwError
from ztw.version import __version__

PACKAGE = Path(__file__).parent.parent


def folder_stamp(folder: Path | str) -> str:
    """Changes when images are added to or removed from a folder of class folders, or one is renamed."""
    places = sorted(path for path in Path(folder).glob("*/*") if path.is_dir())
    return hashlib.sha256(repr([(str(p), p.stat().st_mtime_ns) for p in places]).encode()).hexdigest()[:16]


def file_stamp(path: Path | str | None) -> str | None:
    """Changes when a file is replaced; None for no file or a missing one."""
    if path is None or not Path(path).exists():
        return None
    facts = Path(path).stat()
    return f"{facts.st_size} {facts.st_mtime_ns}"


@cache
def code_digest(*names: str) -> str:
    """Digest of what modules ("training") or functions ("jobs.run_predict") of ztw do.

    Comments, docstrings and formatting do not count, so that only a real edit re-runs a job.
    """
    digest = hashlib.sha256()
    for name in names:
        module, _, function = name.partition(".")
        tree: ast.AST = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
        if function:
            found = (
                node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function
            )
            tree = next(found, None) or _missing(module, function)
        digest.update(ast.dump(_without_docstrings(tree)).encode())
    return digest.hexdigest()[:16]


def _missing(module: str, function: str) -> NoReturn:
    raise ZtwError(f"code digest: ztw/{module}.py has no function {function}")


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return tree


def code_version() -> str:
    """The package's version and, in a git checkout, the commit ("+dirty" with uncommitted changes)."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty=+dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__} {commit}"
