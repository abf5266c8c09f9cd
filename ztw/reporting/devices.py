"""What the results of a study were computed on, and which tables mix devices or precisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ztw.files import read_json

CELL = ("dataset", "arch", "seed")
PART = ("part", "device", "precision", "threads", "host")
# kinds: how many pairs of device and precision the table of this data set and architecture mixes, 1 where it is none
COLUMNS = (*CELL, *PART, "kinds")
Row = Mapping[str, Any]


def device_rows(files: Iterable[Path | str]) -> list[dict[str, Any]]:
    """Every part of every cell (backbone, IC set, its predictions), as the `evaluate` jobs wrote it down."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        facts = read_json(file)
        for part in facts["computed"]:
            row = {**{name: facts[name] for name in CELL}, **{name: part[name] for name in PART}}
            rows[*(row[name] for name in CELL), row["part"]] = row  # methods share their parts
    kinds = _kinds(rows.values())
    return [{**row, "kinds": len(kinds[row["dataset"], row["arch"]])} for row in rows.values()]


def _kinds(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """(data set, architecture) -> "device, precision" -> the seeds of which some part was computed so."""
    kinds: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        of_table = kinds.setdefault((row["dataset"], row["arch"]), {})
        seeds = of_table.setdefault(f"{row['device']}, {row['precision']}", [])
        if str(row["seed"]) not in seeds:
            seeds.append(str(row["seed"]))
    return kinds


def mixed(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """(data set, architecture) -> what stands under a table that mixes devices or precisions, nothing of others."""
    return {
        names: f"Mixed: computed on {len(kinds)} kinds of device or precision, on which accuracies can depend: "
        + "; ".join(f"{kind} (seed {', '.join(seeds)})" for kind, seeds in kinds.items())
        + ". Which part where: devices.csv."
        for names, kinds in _kinds(rows).items()
        if len(kinds) > 1
    }
