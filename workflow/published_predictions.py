"""Publish the logits of a cell, and the weights of ensembles of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.evaluation.prediction_files import ExitTimes, write_predictions
from ztw.evaluation.saving import load
from ztw.exits.logits import read_predictions
from ztw.files import read_json
from ztw.models.costs import macs
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.settings import Study
from ztw.tensors import read_tensors

ALL = "all"


def publish_predictions(
    study: Study, run: Layout, cell: Cell, methods: list[str], names: list[str], target: Layout
) -> None:
    """Publish the predictions of IC sets and static networks, and the ensembles of what is published.

    Args:
        methods: the cell's finished methods.
        names: IC sets and static rows, or "all".

    Raises:
        ZtwError: for a name that is neither an IC set nor a static row of these methods.
    """
    known = _sources(study, methods)
    for name in known if ALL in names else names:
        if name not in known:
            raise ZtwError(
                f"--logits {name}: neither an IC set nor a static row that {cell} has results of; known:"
                f" {', '.join([*known, ALL])}"
            )
        _publish_logits(study, run, cell, name, known[name], target)
    for method in methods:
        if study.methods[method].ensemble:
            _publish_ensemble(study, run, cell, method, target)


def _sources(study: Study, methods: list[str]) -> dict[str, str]:
    """Return IC set or static row -> a method that uses it. Logits in int8 are not published."""
    found: dict[str, str] = {}
    for method in methods:
        row = study.methods[method]
        if row.cascade_of or (row.static and row.int8):
            continue
        name = method if row.static else row.ics
        other = study.methods[found.setdefault(name, method)]
        if bool(other.static) != bool(row.static):
            raise ZtwError(f"--logits: {name} is an IC set and a static row; rename one to publish both")
    return found


def _publish_logits(study: Study, run: Layout, cell: Cell, name: str, method: str, target: Layout) -> None:
    """Publish the predictions of an IC set or a static network for validation and test images."""
    files = (_logits_file(study, run, cell, method, split) for split in ("validation", "test"))
    about = _given(study, run, cell, method) if study.logits else _counted(study, run, cell, method)
    path = target.published_predictions(cell, name)
    write_predictions(path, *map(read_predictions, files), **about, half=True)


def _logits_file(study: Study, run: Layout, cell: Cell, method: str, split: str) -> Path:
    """Return the path of the logits that a method uses."""
    row = study.methods[method]
    if row.static and not study.logits:
        return run.backbone_predictions(cell.with_arch(str(study.network_of(method))), split)
    return run.predictions(cell, row.static or row.ics, split)


def _given(study: Study, run: Layout, cell: Cell, method: str) -> dict[str, Any]:
    """Return costs, times and origin of logits from a file."""
    saved = read_json(metadata(_logits_file(study, run, cell, method, "test")))
    times = [ExitTimes(**times) for times in saved["times"]]
    return {
        "cost": saved["cost"],
        "base_cost": saved["base_cost"],
        "times": times,
        "origin": saved["origin"]["note"],
    }


def _counted(study: Study, run: Layout, cell: Cell, method: str) -> dict[str, Any]:
    """Return the costs of a trained network's exits without an ensemble, and of the cell's backbone."""
    described = read_json(run.network(cell, method))["macs"]
    if study.methods[method].static:
        return {"cost": described["exits"], "base_cost": described["backbone"]}
    network, _ = load(run.network(cell, method).parent)
    network.ensemble = None
    return {"cost": macs(network), "base_cost": described["backbone"]}


def _publish_ensemble(study: Study, run: Layout, cell: Cell, method: str, target: Layout) -> None:
    """Publish the weights of a method's ensemble, if it has any and all its logits are published."""
    row = study.methods[method]
    parts = row.cascade_of or (row.ics,)
    if row.int8 or not all(target.published_predictions(cell, part).is_file() for part in parts):
        return
    weights = run.ensemble(cell, study.source_of(method), str(row.ensemble))
    if read_tensors(weights):
        path = target.published_ensemble(cell, method)
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(weights, path)
