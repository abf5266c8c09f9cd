"""Checks of a study from logits: its names are the user's, and it has no keys that build or train networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.study.checks import check_honest, check_parts
from ztw.study.layout import Cell, figure_title
from ztw.study.logits_settings import LogitsSet
from ztw.study.settings import CellSettings, Study

SUFFIXES = (".safetensors", ".npz", ".parquet")
# Keys that only networks need
OF_NETWORKS = ("backbone", "data", "overrides", "precision", "device", "compile", "tracked_models")
LABEL = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
CELL = [field.name for field in fields(Cell)]


def logits_cells(given: Mapping[str, Any], study: Study) -> dict[tuple[str, str], CellSettings]:
    """Check a study from logits and return its cells: (data set, architecture) -> default settings.

    Args:
        given: the study as its file has it.

    Raises:
        ZtwError: in one line.
    """
    assert study.logits is not None
    if "ics" in given:
        raise ZtwError(
            "ics: a study has trained cells or cells from logits, not both; to compare them, give the logits of the"
            " trained ones under logits.sets"
        )
    if "latency" in given:
        raise ZtwError(
            "latency: there are no networks to time; logits.times takes times from the files; leave it out"
        )
    for key in OF_NETWORKS:
        if key in given:
            raise ZtwError(f"{key}: has no meaning with logits, because there are no networks; leave it out")
    if "published" in study.evaluation.protocols:
        raise ZtwError("evaluation.protocols: published: counts the operations of networks; leave it out")
    _check_labels("datasets", study.datasets, LABEL)
    _check_labels("archs", study.archs, f"{LABEL}(/{LABEL})*")
    check_parts(study)
    check_honest(study)
    cells = list(product(study.datasets, study.archs))
    titles: dict[str, tuple[str, str]] = {}
    for names in cells:
        title = figure_title(*names)
        if (other := titles.setdefault(title, names)) != names:
            raise ZtwError(
                f"archs: {names[1]!r}: {'/'.join(other)} and {'/'.join(names)} would have the same figures; rename one"
            )
    for name, of_set in study.logits.sets.items():
        _check_path(
            f"logits.sets.{name}.path", of_set, [Cell(*names, s) for names in cells for s in study.seeds]
        )
    return {names: CellSettings(study.data, study.backbone, study.ics) for names in cells}


def _check_labels(key: str, names: tuple[str, ...], pattern: str) -> None:
    for index, name in enumerate(names):
        if not re.fullmatch(pattern, name):
            raise ZtwError(
                f"{key}.{index}: {name!r}: must be letters, digits and '_', after the first character also '-' and '.'"
            )


def _check_path(label: str, of_set: LogitsSet, cells: list[Cell]) -> None:
    """Check that a path has a known suffix and leads to another file for every cell."""
    path = of_set.path
    if not path.isprintable():
        raise ZtwError(f"{label}: {path!r}: must be printable")
    try:
        files = [of_set.file(cell) for cell in cells]
    except RuntimeError as error:  # ~ of an unknown user
        raise ZtwError(f"{label}: {path!r}: {error}") from error
    if "{" in str(files[0]) or "}" in str(files[0]):
        raise ZtwError(f"{label}: {path!r}: only {{dataset}}, {{arch}} and {{seed}} may stand in braces")
    if files[0].suffix not in SUFFIXES:
        raise ZtwError(f"{label}: {path!r}: must end in {', '.join(SUFFIXES)}")
    seen: dict[Path, Cell] = {}
    for cell, file in zip(cells, files, strict=True):
        if (other := seen.setdefault(file, cell)) != cell:
            different = next(name for name in CELL if getattr(other, name) != getattr(cell, name))
            raise ZtwError(f"{label}: {path!r}: is the same file for {other} and {cell}; add {{{different}}}")
