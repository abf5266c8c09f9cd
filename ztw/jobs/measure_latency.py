"""Time a cell's methods on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ztw.device import Compute
from ztw.files import write_json
from ztw.jobs.cell import CellNetworks, compute_on
from ztw.jobs.job import Job
from ztw.jobs.kept_times import KeptTimes
from ztw.jobs.latency_bench import ONNX, PYTORCH, Bench, MeasureLatencySettings, thread_counts
from ztw.models.checkpoints import versions
from ztw.progress import Note
from ztw.study.layout import Cell

# Largest share of images that may differ in ONNX Runtime without a note: rounding may move a score across a threshold
FEW = 0.02


def measure_latency(job: Job, cell: Cell, settings: MeasureLatencySettings) -> None:
    """Time every method at every budget in every runtime, and write the rows as JSON.

    Methods are timed in turn, in small groups with the backbone. The backbone's times in a method's group are further
    rows, with the method as `beside`. Times are stored, and measured again only if something changes that they depend
    on. Thresholds come from the validation split and are the same in all runtimes. `differs` is the share of images
    that leave at another exit or get another class than in PyTorch; None for a method in int8, which only ONNX Runtime
    computes. `left_out` lists the networks that ONNX Runtime
    cannot run here, with reasons; a Note reports them.
    """
    networks = CellNetworks(
        job.layout, cell, settings.build, settings.sets, settings.methods, settings.statics
    )
    compute = compute_on(settings.hardware)
    where = {PYTORCH: compute.describe(), ONNX: Compute(compute.device).describe()}
    kept = KeptTimes(networks, _common(job, networks, settings, where))
    found = {name: kept.read(name, job.report) for name in settings.methods}
    missing = {name: method for name, method in settings.methods.items() if found[name] is None}
    if missing:
        bench = Bench(networks, settings, compute, where, missing, job.report)
        for group in bench.groups:
            for name, (measured, lasting) in bench.measure(group).items():
                found[name] = measured
                if lasting:
                    kept.write(name, measured)
    results = [content for content in found.values() if content is not None]
    left_out = [one for content in results for one in content["left_out"]]
    rows = [row for content in results for row in content["rows"]]
    threads = thread_counts(settings.latency)
    rows.sort(
        key=lambda row: (
            settings.latency.batch_sizes.index(row["batch_size"]),
            threads.index(row["threads"]),
        )
    )
    for note in dict.fromkeys([*map(_of_left_out, left_out), *_of_differences(rows)]):
        job.report(Note(note))
    content = {"rows": rows, "left_out": [one for at, one in enumerate(left_out) if one not in left_out[:at]]}
    write_json(job.layout.latency(cell), {**dataclasses.asdict(cell), **content, "versions": versions()})


def _common(
    job: Job, networks: CellNetworks, plan: MeasureLatencySettings, where: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return everything that the times of all methods depend on, except the machine's name, which may change."""
    settings = [plan.evaluation, plan.latency, plan.images]
    record = {key: value for key, value in networks.record.items() if key != "decoded"}  # paths
    machine = [{key: value for key, value in of.items() if key != "host"} for of in where.values()]
    software = {**versions(), **{name: _version(name) for name in ("onnx", "onnxruntime", "onnxscript")}}
    return {
        "code": [job.params.get(name) for name in ("code", "plugins")],
        "settings": [section.model_dump() for section in settings],
        "images": record,
        "machine": machine,
        "software": software,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _of_left_out(one: Mapping[str, Any]) -> str:
    if one["method"] is None:
        return f"latency.runtimes: onnxruntime is left out: {one['reason']}"
    return f"{one['method']}: not timed in ONNX Runtime: {one['reason']}"


def _of_differences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        row["method"]
        + ("" if row["budget"] is None else f" at budget {row['budget']}")
        + f": {row['differs']:.0%} of the predictions differ in ONNX Runtime"
        for row in rows
        if row["differs"] is not None and row["differs"] > FEW
    ]
