"""network.json: all that is known of an early-exit network but its weights, and where those are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ztw.errors import ZtwError
from ztw.exits.ensembles import ENSEMBLES, Ensemble
from ztw.exits.rules import ExitRule, describe_rule
from ztw.files import read_json, sha256, write_sealed
from ztw.models.checkpoints import versions
from ztw.models.network import EarlyExitNetwork

FILE = "network.json"
FORMAT, VERSION = "ztw network", 1


@dataclass(frozen=True)
class Weights:
    """A safetensors file and what is in it: its names, with `prefix` before them, are the network's."""

    path: Path
    prefix: str = ""


def network_facts(
    network: EarlyExitNetwork, backbone: dict[str, Any], cost: Tensor, base: float
) -> dict[str, Any]:
    """What network.json says of the network itself.

    backbone: how to make it, one of {"build_backbone": arguments}, {"stages": graphs, "classifier": graph} and
    {"as_backbone": ...}, which needs the user's model; cost: (K,) MACs, base: of the backbone alone.
    Raises ZtwError for a network whose heads `build_network` has not made.
    """
    if network.anatomy is None:
        raise ZtwError(
            "save: the network's heads are not of build_network, so that nobody could make them again"
        )
    mean_and_std = network.normalisation
    return {
        "format": FORMAT,
        "version": VERSION,
        "arch": network.backbone.arch,
        "input_shape": list(network.backbone.input_shape),
        "classes": network.backbone.classes,
        "class_names": None if network.class_names is None else list(network.class_names),
        "normalisation": mean_and_std and {"mean": list(mean_and_std[0]), "std": list(mean_and_std[1])},
        "ics": network.mode_name,
        "placement": list(network.placement),
        "heads": network.anatomy,
        "ensemble": None if network.ensemble is None else _ensemble_facts(network.ensemble),
        "macs": {"exits": cost.tolist(), "backbone": base},
        "versions": versions(),
        "backbone": backbone,
    }


def _ensemble_facts(ensemble: Ensemble) -> dict[str, Any]:
    for kind, known in ENSEMBLES.items():
        if type(ensemble) is known:
            return {"kind": kind, "include_final": ensemble.include_final}
    raise ZtwError(f"ensemble {type(ensemble).__name__}: must be one of {', '.join(ENSEMBLES)}")


def write_network(
    folder: Path,
    facts: dict[str, Any],
    weights: Sequence[Weights],
    rules: Sequence[tuple[float | str | None, ExitRule]],
    known: Mapping[Path, str] | None = None,
) -> None:
    """Write a folder's network.json, sealed; the files of the weights are there already, anywhere.

    rules: (budget, or None for no particular one; rule), the first is what `load` gives unless it is asked for
    another; known: SHA-256 of files, computed where it is not there.
    """
    files = [
        {
            "file": Path(os.path.relpath(part.path, folder)).as_posix(),
            "prefix": part.prefix,
            "sha256": (known or {}).get(part.path) or sha256(part.path),
        }
        for part in weights
    ]
    described = [{"budget": budget, **describe_rule(rule)} for budget, rule in rules]
    write_sealed(folder / FILE, _readable({**facts, "weights": files, "rules": described}) + "\n")


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
    write_sealed(target / FILE, _readable(facts) + "\n")
    return facts


def _readable(content: Any, depth: int = 0) -> str:
    """JSON in which what fits on a line is on one."""
    flat = json.dumps(content)
    if not isinstance(content, dict | list) or len(flat) + depth <= 110:
        return flat
    if isinstance(content, dict):
        begin, end = "{}"
        rows = [f"{json.dumps(key)}: {_readable(value, depth + 1)}" for key, value in content.items()]
    else:
        begin, end = "[]"
        rows = [_readable(item, depth + 1) for item in content]
    inner = ",\n".join(" " * (depth + 1) + row for row in rows)
    return f"{begin}\n{inner}\n{' ' * depth}{end}"
