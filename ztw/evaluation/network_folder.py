"""The folder of a saved network: what its network.json is called and how it is copied. Imports no torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ztw.files import read_json, write_sealed

FILE = "network.json"
FORMAT, VERSION = "ztw network", 2


def rules_of(folder: Path) -> dict[str, dict[str, Any]]:
    """budget, as text -> its rule as `describe_rule` has it, of a folder's network.json."""
    rules = read_json(folder / FILE)["rules"]
    return {str(item["budget"]): {key: item[key] for key in item if key != "budget"} for item in rules}


def copy_network(folder: Path, target: Path) -> dict[str, Any]:
    """Copy a network with its weights, wherever they are, into a folder of its own; returns what network.json says.

    Rules and hashes stay, so that `load` finds what is altered. Raises OSError where a file of weights is missing.
    """
    facts = read_json(folder / FILE)
    target.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(facts["weights"]):
        name = f"{number}-{Path(part['file']).name}"  # two may be called the same
        shutil.copyfile(folder / part["file"], target / name)
        part["file"] = name
    write_sealed(target / FILE, readable(facts) + "\n")
    return facts


def readable(content: Any, depth: int = 0) -> str:
    """JSON in which what fits on a line is on one."""
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
