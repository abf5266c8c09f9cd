"""Read and copy the folder of a saved network. Imports no torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ztw.files import read_json, write_sealed

FILE = "network.json"
FORMAT, VERSION = "ztw network", 3


def rules_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the rules in a folder's network.json: budget as text -> rule, as returned by `describe_rule`."""
    rules = read_json(folder / FILE)["rules"]
    return {str(item["budget"]): {key: item[key] for key in item if key != "budget"} for item in rules}


def copy_network(folder: Path, target: Path) -> dict[str, Any]:
    """Copy a network and its weights, from any folders, into one folder.

    The hashes are copied, not computed, so that `load` still detects altered files.

    Returns:
        The content of network.json.

    Raises:
        OSError: if a file of weights is missing.
    """
    metadata = read_json(folder / FILE)
    target.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(metadata["weights"]):
        name = f"{number}-{Path(part['file']).name}"  # two files may have the same name
        shutil.copyfile(folder / part["file"], target / name)
        part["file"] = name
    write_sealed(target / FILE, readable(metadata) + "\n")
    return metadata


def readable(content: Any, depth: int = 0) -> str:
    """Return JSON with each value on one line if it fits."""
    flat = json.dumps(content)
    if not isinstance(content, dict | list) or len(flat) + depth <= 110:
        return flat
    if isinstance(content, dict):
        begin, end = "{}"
        rows = [f"{json.dumps(key)}: {readable(value, depth + 1)}" for key, value in content.items()]
    else:
        begin, end = "[]"
        rows = [readable(item, depth + 1) for item in content]
    inner = ",\n".join(" " * (depth + 1) + row for row in rows)
    return f"{begin}\n{inner}\n{' ' * depth}{end}"
