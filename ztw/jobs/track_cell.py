"""Log a cell's results in MLflow, with a figure of its methods."""

from __future__ import annotations

from dataclasses import dataclass

from ztw.files import read_json, write_json
from ztw.jobs.job import Job
from ztw.reporting.figures import accuracy_against_cost
from ztw.reporting.latency_table import shortest_times
from ztw.reporting.mlflow_names import undelivered
from ztw.reporting.results import from_files, read_curves
from ztw.reporting.style import save
from ztw.reporting.tracking import CellResults, ServerAwayError, log_cell
from ztw.study.layout import Cell, metadata
from ztw.study.provenance import code_version


@dataclass(frozen=True)
class TrackCellSettings:
    """Settings of the runs of a cell.

    Args:
        sets: IC sets, or sets of logits.
        from_logits: the cell has no networks.
        ensembles: (IC set, ensemble) of every fitted ensemble.
        families: method with early exits -> family, see `ztw.reporting.style.style`.
        protocol: the protocol of the headline accuracies.
        timed: whether latency was measured.
        models: whether to log every method's network as an MLflow model.
    """

    methods: tuple[str, ...]
    sets: tuple[str, ...]
    from_logits: bool
    ensembles: tuple[tuple[str, str], ...]
    families: dict[str, str]
    protocol: str
    timed: bool
    models: bool


def track_cell(job: Job, cell: Cell, settings: TrackCellSettings) -> None:
    """Draw accuracy against cost, log all results in MLflow, and write the ids of the runs.

    If the server is away, the file of ids holds the reason instead. The study still makes its tables, and the next call
    of `reproduce` logs the cell again.

    Raises:
        ZtwError: if the store cannot be used.
    """
    layout, methods = job.layout, settings.methods
    curves = {method: layout.curves(cell, method) for method in methods}
    metrics = [layout.metrics(cell, method) for method in methods]
    title = f"{cell.dataset}, {cell.arch}, seed {cell.seed}"
    figure = accuracy_against_cost(
        read_curves(curves.values()), from_files(metrics), settings.families, title
    )
    save(figure, layout.cell_figure(cell))
    given = settings.from_logits
    sets = [
        layout.predictions(cell, ics, "test") if given else layout.ics(cell, ics) for ics in settings.sets
    ]
    parts = {
        "backbone": [] if given else [metadata(layout.backbone(cell))],
        "ics": [metadata(of_set) for of_set in sets],
        "ensemble": [metadata(layout.ensemble(cell, *names)) for names in settings.ensembles],
        "method": metrics,
    }
    artifacts = {method: [curve] for method, curve in curves.items()}
    artifacts["cell"] = [layout.cell_figure(cell), *([layout.latency(cell)] if settings.timed else [])]
    times = shortest_times(layout.latency(cell)) if settings.timed else {}
    models = {method: layout.network(cell, method).parent for method in methods if settings.models}
    results = CellResults(cell, code_version(), parts, artifacts, settings.protocol, times, models)
    try:
        runs = log_cell(read_json(layout.store), results, job.report)
    except ServerAwayError as away:
        job.report(f"not logged: {away}")
        runs = undelivered(cell, str(away))
    write_json(layout.runs(cell), runs)
