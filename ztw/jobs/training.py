"""What the jobs that train share: where and how they compute, and what is written down of a training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ztw.catalogue.parts import own
from ztw.device import computed_on
from ztw.files import sha256
from ztw.jobs.cell import CellNetworks, compute_on, trained_part
from ztw.models.checkpoints import save_checkpoint, versions
from ztw.models.network import EarlyExitNetwork
from ztw.progress import Report
from ztw.study import training_settings
from ztw.study.settings import HardwareSettings
from ztw.training.loop import History
from ztw.training.recipe import Recipe
from ztw.training.resume import Checkpoints


@dataclass(frozen=True)
class Computing:
    """Where and how a training computes; precision: resolved."""

    device: torch.device
    precision: str
    compile: bool | Literal["auto"]

    @classmethod
    def of(cls, hardware: HardwareSettings) -> Computing:
        """As the study says, on this machine."""
        return cls(*compute_on(hardware), hardware.compile)

    def recipe(self, section: training_settings.Recipe) -> Recipe:
        """The recipe of a section of the study."""
        given = {key: getattr(section, key) for key in training_settings.Recipe.model_fields}
        dropout = getattr(section, "frozen_dropout", False)
        # what a plugin's network decides in Python would be captured once for all batches
        of_a_plugin = bool(own("backbone") or own("head"))
        graph = self.device.type == "cuda" and self.compile == "auto" and not of_a_plugin
        return Recipe(
            **given,
            precision=self.precision,
            compile=self.compile,
            cuda_graph=graph,
            frozen_dropout=dropout,
        )

    def facts(self, history: History, checkpoints: Checkpoints) -> dict[str, Any]:
        """What is written down of a training: its history, where it was resumed, what it was computed on and with."""
        computed = {**computed_on(self.device, self.precision), "versions": versions()}
        return {"history": history, "resumed": checkpoints.resumed, **computed}


def job_checkpoints(params: Mapping[str, Any], inputs: Iterable[str], report: Report) -> Checkpoints:
    """A training job's checkpoints, in params["checkpoints"].

    They are of the rule's params, of what is in its inputs, and of the software.
    """
    settings = {key: value for key, value in params.items() if key not in ("code", "checkpoints")}
    of = {
        "code": str(params["code"]),
        "settings": json.dumps(settings, sort_keys=True, default=str),
        "inputs": " ".join(sha256(Path(path)) for path in inputs),
        "software": json.dumps(versions(), sort_keys=True),
    }
    return Checkpoints(Path(params["checkpoints"]), of, report)


def save_ics(
    networks: CellNetworks,
    name: str,
    network: EarlyExitNetwork,
    trained: Mapping[str, Any],
    output: str,
) -> None:
    """Write the trained part of an IC set's network and what it is; trained: facts of the training."""
    ics = networks.sets[name]
    facts = {
        **networks.identity,
        "class_names": networks.record["class_names"],
        "ics": name,
        "connection": ics.connection,
        "placement": list(network.placement),
        "settings": ics.model_dump(),
        **trained,
    }
    save_checkpoint(output, trained_part(network, ics), facts)
