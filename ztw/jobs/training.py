"""What the jobs that train share: where and how they compute, and what is written down of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ztw.device import device_name
from ztw.jobs.cell import CellNetworks, compute_on, trained_part
from ztw.models.checkpoints import save_checkpoint, versions
from ztw.models.network import EarlyExitNetwork
from ztw.study import training_settings
from ztw.study.settings import HardwareSettings
from ztw.training.loop import History, Recipe


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
        return Recipe(**given, precision=self.precision, compile=self.compile)

    def facts(self) -> dict[str, Any]:
        """What a result was computed on and with."""
        return {
            "device": device_name(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }


def save_ics(
    networks: CellNetworks,
    name: str,
    network: EarlyExitNetwork,
    history: History,
    computed: Computing,
    output: str,
) -> None:
    """Write the trained part of an IC set's network and what it is."""
    ics = networks.sets[name]
    facts = {
        **networks.identity,
        "class_names": networks.record["class_names"],
        "ics": name,
        "mode": ics.mode,
        "placement": list(network.placement),
        "settings": ics.model_dump(),
        "history": history,
        **computed.facts(),
    }
    save_checkpoint(output, trained_part(network, ics), facts)
