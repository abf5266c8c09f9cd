"""The optional packages: what they are for, and the error if one is missing. Imports none of them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from ztw.errors import ZtwError


class Extra(NamedTuple):
    """An extra of the package, as in `pip install 'ztw[onnx]'`.

    Args:
        purpose: what it is for.
        packages: the names to import, without those that only a command line needs.
    """

    purpose: str
    packages: tuple[str, ...]


# The names are those of pyproject.toml; a test compares both.
EXTRAS = {
    "workflow": Extra(
        "studies: make reproduce, tables, figures, reports, MLflow",
        (
            *(
                "altair",
                "jinja2",
                "matplotlib",
                "mlflow",
                "pandas",
                "psutil",
                "pyarrow",
                "pydantic",
                "rich",
                "seaborn",
            ),
            *("sklearn", "snakemake", "snakemake_executor_plugin_slurm", "vl_convert", "yaml"),
        ),
    ),
    "onnx": Extra(
        "early exits in ONNX Runtime: export_onnx, OnnxRunner, advise",
        ("onnx", "onnxruntime", "onnxscript"),
    ),
    "timm": Extra("models of timm: timm/<name>", ("timm",)),
    "text": Extra("models of Hugging Face", ("tokenizers", "transformers")),
}


def need(purpose: str, extra: str, *packages: str) -> None:
    """Raise ZtwError if an optional package cannot be imported.

    Args:
        purpose: what needs it, for the message.
        extra: a name in EXTRAS.
        packages: the names to import; none = all of the extra, of which it is only checked that they are installed.
    """
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise _missing(purpose, extra, error.name or package) from error
    if not packages and (absent := missing(extra)):
        raise _missing(purpose, extra, absent[0])


def missing(extra: str) -> list[str]:
    """List the packages of an extra that are not installed, without importing them."""
    return [package for package in EXTRAS[extra].packages if find_spec(package) is None]


def _missing(purpose: str, extra: str, package: str) -> ZtwError:
    return ZtwError(f"{purpose}: the package {package} is not installed; pip install 'ztw[{extra}]'")


def extra_of(package: str) -> str | None:
    """Return the extra that has a package; None if no extra has it."""
    return next((name for name, extra in EXTRAS.items() if package in extra.packages), None)
