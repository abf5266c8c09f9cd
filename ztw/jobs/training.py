"""Define what the training jobs share: recipe, checkpoints, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ztw.catalogue.parts import own
from ztw.device import Compute
from ztw.files import sha256
from ztw.jobs.cell import CellNetworks, trained_part
from ztw.jobs.job import Job
from ztw.models.checkpoints import save_checkpoint, versions
from ztw.models.network import EarlyExitNetwork
from ztw.study import training_settings
from ztw.study.layout import Cell
from ztw.study.settings import HardwareSettings
from ztw.training.distillation import Distillation
from ztw.training.loop import History
from ztw.training.recipe import Recipe
from ztw.training.resume import Checkpoints


def recipe_of(section: training_settings.Recipe, hardware: HardwareSettings, compute: Compute) -> Recipe:
    """Return the recipe of a section of the study; compute: from `compute_on`."""
    given = {key: getattr(section, key) for key in training_settings.Recipe.model_fields}
    # A CUDA graph would repeat one decision of a plugin's Python code for all batches
    of_a_plugin = bool(own("backbone") or own("head"))
    return Recipe(
        **given,
        compute=compute,
        compile=hardware.compile,
        cuda_graph=compute.device.type == "cuda" and hardware.compile == "auto" and not of_a_plugin,
        frozen_dropout=getattr(section, "frozen_dropout", False),
    )


def distillation_of(section: training_settings.Distillation | None) -> Distillation | None:
    """Return the distillation of a section of the study."""
    return None if section is None else Distillation(section.weight, section.temperature)


def training_metadata(compute: Compute, history: History, checkpoints: Checkpoints) -> dict[str, Any]:
    """Return the metadata of a training: history, positions of resumes, hardware and versions."""
    computed = {**compute.describe(), "versions": versions()}
    return {"history": history, "resumed": checkpoints.resumed, **computed}


def job_checkpoints(job: Job, cell: Cell, training: str) -> Checkpoints:
    """Return the checkpoints of a training. The job's settings, code, inputs and software identify it."""
    settings = {key: value for key, value in job.params.items() if key != "code"}
    of = {
        "code": str(job.params.get("code")),
        "settings": json.dumps(settings, sort_keys=True, default=str),
        "inputs": " ".join(map(sha256, job.inputs)),
        "software": json.dumps(versions(), sort_keys=True),
    }
    return Checkpoints(job.layout.checkpoints(cell, training), of, job.report)


def save_ics(
    networks: CellNetworks, name: str, network: EarlyExitNetwork, trained: Mapping[str, Any]
) -> None:
    """Write the trained part of an IC set's network, and its metadata; trained: from `training_metadata`."""
    ics = networks.sets[name]
    metadata = {
        **networks.identity,
        "class_names": networks.record["class_names"],
        "ics": name,
        "connection": ics.connection,
        "placement": list(network.placement),
        "settings": ics.model_dump(),
        **trained,
    }
    save_checkpoint(networks.layout.ics(networks.cell, name), trained_part(network, ics), metadata)
