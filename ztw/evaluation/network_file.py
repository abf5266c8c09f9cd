"""network.json: all that is known of an early-exit network but its weights, and where those are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ztw.errors import ZtwError
from ztw.evaluation.network_folder import FILE, FORMAT, VERSION, readable
from ztw.exits.ensembles import ENSEMBLES, Ensemble
from ztw.exits.rules import ExitRule, describe_rule
from ztw.files import sha256, write_sealed
from ztw.models.checkpoints import versions
from ztw.models.network import EarlyExitNetwork


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
        "num_classes": network.backbone.num_classes,
        "class_names": None if network.class_names is None else list(network.class_names),
        "normalisation": mean_and_std and {"mean": list(mean_and_std[0]), "std": list(mean_and_std[1])},
        "connection": network.connection.name,
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
    write_sealed(folder / FILE, readable({**facts, "weights": files, "rules": described}) + "\n")
