"""The job that logs a cell's results in MLflow, with a figure of its methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ztw.evaluation.curves import read_curves
from ztw.files import read_json, write_json
from ztw.progress import Report
from ztw.reporting.figures import accuracy_against_cost
from ztw.reporting.results import from_files
from ztw.reporting.style import save
from ztw.reporting.tracking import CellResults, log_cell
from ztw.study.provenance import code_version

if TYPE_CHECKING:  # only types: the wording of a key must not count as a change of what is tracked
    from ztw.study.settings import Cell, MethodSettings


@dataclass(frozen=True)
class CellFacts:
    """What other jobs wrote down; store: `start_tracking`; metrics, curves: a file a method, in the methods' order."""

    store: str
    backbone: str
    ics: Sequence[str]
    ensembles: Sequence[str]
    metrics: Sequence[str]
    curves: Sequence[str]


def track_cell(
    cell: Cell,
    study: str,
    methods: Mapping[str, MethodSettings],
    files: CellFacts,
    output: str,
    report: Report,
) -> None:
    """Draw accuracy against cost beside `output`, log everything, and write the runs' ids to `output`.

    Raises ZtwError when the store cannot be reached.
    """
    stem = str(Path(output).with_name("accuracy_cost"))
    title = f"{cell.dataset}, {cell.arch}, seed {cell.seed}"
    curves = read_curves(files.curves)
    save(accuracy_against_cost(curves, from_files(files.metrics), methods, title), stem)
    parts = {
        "backbone": [files.backbone],
        "ics": files.ics,
        "ensemble": files.ensembles,
        "method": files.metrics,
    }
    artifacts = {method: [curve] for method, curve in zip(methods, files.curves, strict=True)}
    artifacts["cell"] = [f"{stem}.png"]
    results = CellResults(cell, study, code_version(), parts, artifacts)
    write_json(output, log_cell(read_json(files.store), results, report))
