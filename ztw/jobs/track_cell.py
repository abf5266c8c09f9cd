"""The job that logs a cell's results in MLflow, with a figure of its methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ztw.files import read_json, write_json
from ztw.progress import Report
from ztw.reporting.figures import accuracy_against_cost
from ztw.reporting.latency_table import shortest_times
from ztw.reporting.mlflow_names import UNDELIVERED
from ztw.reporting.results import from_files, read_curves
from ztw.reporting.style import save
from ztw.reporting.tracking import CellResults, ServerAwayError, log_cell
from ztw.study.provenance import code_version

if TYPE_CHECKING:  # only types: the wording of a key must not count as a change of what is tracked
    from ztw.study.settings import Cell


@dataclasses.dataclass(frozen=True)
class CellFacts:
    """What other jobs wrote down; store: `start_tracking`; metrics, curves: a file a method, in the methods' order.

    networks: the same, where they are logged as models; times: of `measure_latency`, where it ran.
    """

    store: str
    backbone: str
    ics: Sequence[str]
    ensembles: Sequence[str]
    metrics: Sequence[str]
    curves: Sequence[str]
    networks: Sequence[str] = ()
    times: str | None = None


def track_cell(
    cell: Cell,
    study: str,
    methods: tuple[Sequence[str], Mapping[str, str]],
    protocol: str,
    files: CellFacts,
    output: str,
    report: Report,
) -> None:
    """Draw accuracy against cost beside `output`, log everything, and write the runs' ids to `output`.

    methods: their names, and the families of those with early exits; protocol: whose accuracies are the runs'
    headlines.
    When the server is away, `output` says so instead (UNDELIVERED): a study ends with its tables, and the next
    call of `reproduce` does this again. Raises ZtwError when the store cannot be used.
    """
    stem = str(Path(output).with_name("accuracy_cost"))
    title = f"{cell.dataset}, {cell.arch}, seed {cell.seed}"
    curves = read_curves(files.curves)
    save(accuracy_against_cost(curves, from_files(files.metrics), methods[1], title), stem)
    parts = {
        "backbone": [files.backbone],
        "ics": files.ics,
        "ensemble": files.ensembles,
        "method": files.metrics,
    }
    artifacts = {method: [curve] for method, curve in zip(methods[0], files.curves, strict=True)}
    artifacts["cell"] = [f"{stem}.png", *([files.times] if files.times else [])]
    times = shortest_times(files.times) if files.times else {}
    folders = [Path(network).parent for network in files.networks]
    models = dict(zip(methods[0], folders, strict=True)) if folders else {}
    results = CellResults(cell, study, code_version(), parts, artifacts, protocol, times, models)
    try:
        runs = log_cell(read_json(files.store), results, report)
    except ServerAwayError as away:
        report(f"not delivered: {away}")
        runs = {**dataclasses.asdict(cell), UNDELIVERED: str(away)}
    write_json(output, runs)
