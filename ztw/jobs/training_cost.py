"""Report what the training of each method cost, so that a study shows whether its comparison is fair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ztw.evaluation.metric_rows import Metric
from ztw.files import read_json
from ztw.jobs.cell import CellNetworks
from ztw.models.cascade import ModelCascade
from ztw.models.costs import macs
from ztw.models.network import EarlyExitNetwork
from ztw.study.layout import metadata
from ztw.study.settings import DataSettings

# A backward pass computes gradients of weights and of inputs, each about as expensive as the forward pass
TRAINED, FROZEN = 3, 1
PASSES = "training_passes"  # name of the metric
# Largest relative difference in passes between methods without a note
FAIR = 0.1


def training_cost(
    networks: CellNetworks, name: str, network: EarlyExitNetwork, images: DataSettings
) -> list[Metric]:
    """Return the passes over the training images, and the MACs of the training.

    Passes of early exits are the backbone's and, if they start from it, the exits'. Passes of a cascade are those of
    the network with the most. MACs are estimated: 3 forward passes for a trained part, 1 for a frozen part. A teacher's
    own training does not count.

    Args:
        network: of the method.
    """
    count = _training_images(networks.record, images)
    if members := networks.members(name):
        epochs = [_epochs(read_json(metadata(one.layout.backbone(one.cell)))) for one in members]
        backbone = network.backbone
        costs = [
            macs(one) for one in (backbone.members if isinstance(backbone, ModelCascade) else [backbone])
        ]
        spent = sum(TRAINED * cost * of for cost, of in zip(costs, epochs, strict=True))
        return _metrics(max(epochs), spent * count)
    ics, base = networks.methods[name].ics, macs(network.backbone)
    of_set = networks.sets[ics]
    own = _epochs(read_json(metadata(networks.layout.ics(networks.cell, ics))))
    ensemble, network.ensemble = network.ensemble, None
    heads = float(macs(network)[-1]) - base
    network.ensemble = ensemble
    before = (
        _epochs(read_json(metadata(networks.layout.backbone(networks.cell))))
        if of_set.start != "scratch"
        else 0.0
    )
    factor = TRAINED if of_set.trains_backbone else FROZEN
    spent = TRAINED * base * before + (factor * base + TRAINED * heads) * own
    return _metrics(before + own, spent * count)


def _metrics(passes: float, spent: float) -> list[Metric]:
    return [Metric(PASSES, passes), Metric("training_macs", spent)]


def _epochs(weights: Mapping[str, Any]) -> float:
    return float(weights["settings"]["epochs"])


def _training_images(record: Mapping[str, Any], images: DataSettings) -> float:
    count = images.training_images or record["counts"]["train"]
    return count * (1 - images.validation_fraction) if images.validation_from == "train" else count


def unequal(passes: Mapping[str, float]) -> str | None:
    """Return a note if the methods' passes differ by more than a tenth; passes: method -> passes."""
    least, most = min(passes, key=passes.__getitem__), max(passes, key=passes.__getitem__)
    if passes[most] <= passes[least] * (1 + FAIR):
        return None
    return (
        f"training is unequal: {most} has {passes[most]:g} passes over the training images, {least} has"
        f" {passes[least]:g}; see tables/training.csv"
    )
