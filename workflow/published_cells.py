"""Copy a finished cell into a published study, and check the cell's settings."""

from __future__ import annotations

import hashlib
import shutil
from datetime import date
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.files import check_seal, read_json, sha256, write_json
from ztw.reporting.readable import read_rows
from ztw.reporting.results import read_curves
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.provenance import code_version
from ztw.study.settings import Study

# Columns of a method's curves that are published: enough for figures and for other choices of thresholds
NAMES = ["dataset", "arch", "seed", "method", "split"]
NUMBERS = {"parameter": "float64", "accuracy": "float32", "relative_cost": "float32"}
Recipe = dict[Path, dict[str, Any]]


def recipe(study: Study, layout: Layout, cell: Cell, methods: list[str]) -> Recipe:
    """Return the settings that a cell's results depend on, as file that records them -> settings."""
    found: Recipe = {}
    for method, row in study.methods.items():
        home = cell.with_arch((None if study.logits else study.network_of(method)) or cell.arch)
        sections = study.backbones.get((home.dataset, home.arch))
        if method not in methods or sections is None:
            continue
        images = sections.data.model_dump(mode="json", exclude={"root"})
        # without the path, which differs between machines
        images["image_folders"] = images["image_folders"].get(cell.dataset, {}).get("size")
        found[layout.cell_config(home)] = images | study.evaluation.model_dump(mode="json")
        found[layout.metrics(cell, method)] = row.model_dump(mode="json")
        if study.logits:
            for of_set in study.source_of(method).split("+"):
                file = metadata(layout.predictions(cell, of_set, "test"))
                found[file] = study.logits.sets[of_set].model_dump(mode="json", exclude={"path"})
        else:
            found[metadata(layout.backbone(home))] = sections.backbone.model_dump(mode="json")
            if row.ics:
                found[metadata(layout.ics(cell, row.ics))] = sections.ics.sets[row.ics].model_dump(
                    mode="json"
                )
        if row.ensemble:
            file = metadata(layout.ensemble(cell, study.source_of(method), row.ensemble))
            found[file] = study.ensembles.sets[row.ensemble].model_dump(mode="json")
    return found


def check_recipe(had: Recipe, wanted: Recipe) -> None:
    """Raise ZtwError if a cell was computed with other settings (`had`) than the study has (`wanted`)."""
    for file, settings in wanted.items():
        for name, value in settings.items():
            # A key that is newer than the cell had its default, null or false
            if (was := had.get(file, {}).get(name)) != value and (was or value):
                raise ZtwError(f"{file}: computed with {name} {was}, the study has {value}; compute it again")


def publish_cell(study: Study, run: Layout, cell: Cell, methods: list[str], target: Layout) -> dict[str, Any]:
    """Copy the files of a cell that tables and figures need, and return the cell's provenance.

    The provenance: versions; "trainings", the hardware, software and seconds of each network's training (IC sets with
    the same recipe share a pass and its seconds); and the SHA-256 of the logits. Names of machines become digests.
    """
    wanted = recipe(study, run, cell, methods)
    results = {file: read_json(file) for file in sorted(wanted) if file.suffix == ".json" and file.is_file()}
    had = {file: result["settings"] for file, result in results.items()}
    check_recipe(had, {file: wanted[file] for file in had})
    for method in methods:
        metrics = results[run.metrics(cell, method)]
        for part in metrics["computed"]:
            part["host"] = f"host {hashlib.sha256(part['host'].encode()).hexdigest()[:6]}"
        write_json(target.metrics(cell, method), metrics)
        _publish_curves(run.curves(cell, method), target.curves(cell, method))
        check_seal(run.correct(cell, method))
        target.correct(cell, method).parent.mkdir(exist_ok=True)
        shutil.copyfile(run.correct(cell, method), target.correct(cell, method))
    if run.latency(cell).is_file():
        times = read_json(run.latency(cell))
        rows = [{key: row[key] for key in row if key != "host"} for row in times["rows"]]
        write_json(target.latency(cell), times | {"rows": rows})
    homes = {run.cell(cell.with_arch(study.network_of(method) or cell.arch)) for method in methods}
    logits = [file for home in homes for file in home.glob("*predictions/**/*.safetensors")]
    trained = {file: result for file, result in results.items() if "history" in result}
    return {
        "versions": metrics["versions"],
        "trainings": {str(file.relative_to(run.folder)): _training(own) for file, own in trained.items()},
        "origins": {result["ics"]: result["origin"] for result in results.values() if "base_cost" in result},
        "logits_sha256": {str(file.relative_to(run.folder)): sha256(file) for file in logits},
    }


def _training(result: dict[str, Any]) -> dict[str, Any]:
    seconds = round(sum(epoch["seconds"] for epoch in result["history"]))
    return {
        "seconds": seconds,
        **{key: result[key] for key in ("device", "precision", "threads", "versions")},
    }


def _publish_curves(source: Path, path: Path) -> None:
    """Write a method's curves with split byte streams, which makes the file a third smaller."""
    path.parent.mkdir(exist_ok=True)
    rows = read_curves([source])[[*NAMES, *NUMBERS]].drop_duplicates().astype(NUMBERS)
    together: Any = {"use_dictionary": NAMES, "column_encoding": dict.fromkeys(NUMBERS, "BYTE_STREAM_SPLIT")}
    rows.to_parquet(path, index=False, compression="zstd", compression_level=19, **together)


def provenance(run: Layout, machine: str) -> dict[str, Any]:
    """Return date, machine and version of the code at publishing, and the seconds of the run's jobs by rule."""
    pipeline = run.table("pipeline")
    rows = read_rows(pipeline) if pipeline.is_file() else []
    seconds = {row["rule"]: round(float(row["seconds"])) for row in rows}
    today = date.today().isoformat()
    return {"date": today, "machine": machine, "published_at": code_version(), "seconds": seconds}
