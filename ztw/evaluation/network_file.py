"""Write network.json: the description of an early-exit network, with the paths of its weights."""

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
    """A safetensors file of weights. prefix: text before a name in the file, to get the name in the network."""

    path: Path
    prefix: str = ""


def network_metadata(
    network: EarlyExitNetwork, backbone: dict[str, Any], cost: Tensor, base: float
) -> dict[str, Any]:
    """Return the metadata of a network for network.json.

    Args:
        backbone: how `load` makes the backbone: {"build_backbone": arguments}, {"stages": graphs, "classifier": graph},
            {"cascade": models}, each with its `arch`, `inputs` and `backbone`; or {"as_backbone": ...}, which needs the
            user's model.
        cost: (K,) cumulative MACs.
        base: MACs of the backbone alone.

    Raises:
        ZtwError: if `build_network` did not make the network's heads.
    """
    if network.anatomy is None:
        raise ZtwError(
            "save: the network's heads were not made by build_network, so load cannot make them again"
        )
    mean_and_std = network.normalisation
    return {
        "format": FORMAT,
        "version": VERSION,
        "arch": network.backbone.arch,
        "inputs": network.backbone.inputs.to_json(),
        "num_classes": network.backbone.num_classes,
        "class_names": None if network.class_names is None else list(network.class_names),
        "normalisation": mean_and_std and {"mean": list(mean_and_std[0]), "std": list(mean_and_std[1])},
        "connection": network.connection.name,
        "placement": list(network.placement),
        "heads": network.anatomy,
        "ensemble": None if network.ensemble is None else _ensemble_metadata(network.ensemble),
        "macs": {"exits": cost.tolist(), "backbone": base},
        "versions": versions(),
        "backbone": backbone,
    }


def _ensemble_metadata(ensemble: Ensemble) -> dict[str, Any]:
    for kind, known in ENSEMBLES.items():
        if type(ensemble) is known:
            return {"kind": kind, "include_final": ensemble.include_final}
    raise ZtwError(f"ensemble {type(ensemble).__name__}: must be one of {', '.join(ENSEMBLES)}")


def write_network(
    folder: Path,
    metadata: dict[str, Any],
    weights: Sequence[Weights],
    rules: Sequence[tuple[float | str | None, ExitRule]],
    known: Mapping[Path, str] | None = None,
) -> None:
    """Write network.json and its SHA-256 to a folder.

    Args:
        metadata: from `network_metadata`.
        weights: existing files of weights, in any folder.
        rules: (budget or None, rule); `load` returns the first unless a budget is given.
        known: file -> SHA-256, where it is known.
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
    write_sealed(folder / FILE, readable({**metadata, "weights": files, "rules": described}) + "\n")
