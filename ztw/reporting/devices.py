"""List the devices and precisions of a study's results, and find the tables that mix them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ztw.files import read_json

CELL = ("dataset", "arch", "seed")
PART = ("part", "device", "precision", "threads", "host")
# kinds: number of pairs of device and precision in the table of this data set and architecture
COLUMNS = (*CELL, *PART, "kinds")
Row = Mapping[str, Any]


def device_rows(files: Iterable[Path | str]) -> list[dict[str, Any]]:
    """Return one row per part of every cell (backbone, IC set, predictions), from files of the job `evaluate`."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        content = read_json(file)
        for part in content["computed"]:
            row = {**{name: content[name] for name in CELL}, **{name: part[name] for name in PART}}
            rows[*(row[name] for name in CELL), row["part"]] = row  # methods share their parts
    kinds = _kinds(rows.values())
    return [{**row, "kinds": len(kinds[row["dataset"], row["arch"]])} for row in rows.values()]


def _kinds(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Return (data set, architecture) -> "device, precision" -> seeds, without methods in int8."""
    kinds: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        if row["precision"] == "int8":  # the study asks for it in single rows
            continue
        of_table = kinds.setdefault((row["dataset"], row["arch"]), {})
        seeds = of_table.setdefault(f"{row['device']}, {row['precision']}", [])
        if str(row["seed"]) not in seeds:
            seeds.append(str(row["seed"]))
    return kinds


def mixed(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """Return (data set, architecture) -> the note under a table that mixes devices or precisions."""
    return {
        names: f"Mixed: computed on {len(kinds)} kinds of device or precision, on which accuracies can depend: "
        + "; ".join(f"{kind} (seed {', '.join(seeds)})" for kind, seeds in kinds.items())
        + ". Which part where: devices.csv."
        for names, kinds in _kinds(rows).items()
        if len(kinds) > 1
    }
