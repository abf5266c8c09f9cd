"""Make the table of measured times, with accuracy and cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ztw.catalogue.titles import title_of
from ztw.evaluation.names import BACKBONE
from ztw.files import check_seal, read_json, write_sealed
from ztw.reporting.readable import INFEASIBLE, Notes, budget_name, percent
from ztw.reporting.rendering import markdown_table
from ztw.reporting.results import IDENTITY, Metrics
from ztw.reporting.tables import write_csv

NUMBERS = ["median_ms", "p95_ms", "images_per_s", "relative_time", "relative_time_in_runtime", "differs"]
COLUMNS = [
    *("dataset", "arch", "method", "budget", "runtime", "batch_size"),
    *NUMBERS,
    *("accuracy", "relative_cost", "device", "precision", "threads", "file_mb", "peak_mb"),
]
SIZES = {"file_mb": "file (MB)", "peak_mb": "memory (MB)"}
HOW = ["batch_size", "threads"]
WHOLE = "whole network"  # heading of times without a budget
CAPTION = (
    "Test accuracy in %, and in brackets the measured time as a share of the time of the backbone alone in its fastest"
    f" runtime (same batch size and number of threads). Columns: the budget, or {WHOLE} for a network without early"
    " exits. differs: share of the timed images that leave elsewhere or get another class than in pytorch, the largest"
    " over the budgets. file: the exported network. memory: the peak that ONNX Runtime adds to a process for one sample"
    " through all blocks. latency.csv has all numbers"
)


def latency_table(files: Iterable[Path | str], metrics: Metrics) -> pd.DataFrame:
    """Return measured times with accuracy and cost of the same seed's test split.

    relative_time is the time as a share of the backbone's time in its fastest runtime (smallest median), for the same
    batches and in the same group of methods. relative_time_in_runtime is the share of the backbone's time in the row's
    runtime, NaN if the backbone was not timed in it. The backbone's rows are medians over all groups.

    Args:
        files: from the job `measure_latency`.
    """
    times = pd.concat([_times(read_json(file)) for file in files], ignore_index=True)
    table = times.merge(_known(metrics), how="left", on=[*IDENTITY, "budget"])
    table.loc[table["method"] == BACKBONE, "relative_cost"] = 1.0
    return table.reindex(columns=COLUMNS)  # rows of earlier versions have no file_mb and peak_mb


def _times(content: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of one file, with "-" for no budget."""
    found = [
        {"beside": "", **row, "budget": INFEASIBLE if row["budget"] is None else str(row["budget"])}
        for row in content["rows"]  # rows of earlier versions have no `beside`: all methods were one group
    ]
    rows = pd.DataFrame(found).assign(**{name: content[name] for name in IDENTITY[:3]})
    unknown = [name for name in ("differs", "file_mb", "peak_mb") if name in rows]
    rows[unknown] = rows[unknown].astype(float)  # None becomes NaN
    alone = rows[rows["method"] == BACKBONE].sort_values("median_ms", kind="stable")
    fastest = _speed(rows, alone, ["beside", *HOW])
    own = _speed(rows, alone, ["beside", *HOW, "runtime"])
    rows = rows.assign(
        relative_time=fastest / rows["images_per_s"], relative_time_in_runtime=own / rows["images_per_s"]
    )
    return _with_one_backbone(rows)


def _speed(rows: pd.DataFrame, alone: pd.DataFrame, where: list[str]) -> np.ndarray:
    """Return for every row the backbone's images per second: the first row of `alone` with equal values of `where`."""
    speeds = alone.drop_duplicates(where).set_index(where)["images_per_s"]
    return speeds.reindex(pd.MultiIndex.from_frame(rows[where])).to_numpy()


def _with_one_backbone(rows: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by batch size and threads, and replace the backbone's rows in each runtime by their median."""
    is_backbone, numbers = rows["method"] == BACKBONE, [name for name in NUMBERS if name in rows]
    groups = rows[is_backbone].groupby([*HOW, "runtime"], sort=False)
    alone = groups.first().assign(**groups[numbers].median()).reset_index()
    both = pd.concat([alone, rows[~is_backbone]], ignore_index=True)
    return both.sort_values(
        HOW, key=lambda of: of.map(list(rows[of.name].unique()).index), kind="stable", ignore_index=True
    )


def left_out(files: Iterable[Path | str]) -> dict[tuple[str, str], str]:
    """Return (data set, architecture) -> the note under its tables about missing rows, with reasons."""
    lines: dict[tuple[str, str], str] = {}
    for file in files:
        content = read_json(file)
        reasons: dict[tuple[str, str], list[str]] = {}
        for one in content.get("left_out", ()):
            reasons.setdefault((one["runtime"], one["reason"]), []).append(one["method"] or "all")
        for (runtime, reason), methods in reasons.items():
            line = f"Not timed in {runtime}: {', '.join(methods)} ({reason})."
            place = content["dataset"], content["arch"]
            lines[place] = f"{lines[place]}\n{line}" if place in lines else line
    return lines


def shortest_times(file: Path | str) -> dict[str, dict[str, float]]:
    """Return method -> budget -> the smallest relative time in any runtime, for the smallest batch and most threads."""
    times = _times(read_json(file))
    smallest = times[times["batch_size"].eq(times["batch_size"].min())]
    smallest = smallest[smallest["threads"].eq(smallest["threads"].max())]
    shortest = smallest.sort_values("relative_time").drop_duplicates(["method", "budget"])
    found: dict[str, dict[str, float]] = {}
    for row in shortest.to_dict("records"):
        found.setdefault(row["method"], {})[row["budget"]] = row["relative_time"]
    return found


def _known(metrics: Metrics) -> pd.DataFrame:
    """Return accuracy and relative cost of each method at each budget; for networks without exits the budget is "-"."""
    names, where = ["accuracy", "relative_cost"], [*IDENTITY, "budget"]
    held_out = metrics[metrics["protocol"].eq("held-out") & metrics["metric"].isin(names)]
    methods = held_out.pivot(index=where, columns="metric", values="value").reindex(columns=names)
    backbones = metrics[metrics["metric"] == "backbone_accuracy"].drop_duplicates(IDENTITY[:3])
    backbones = backbones.assign(method=BACKBONE, budget=INFEASIBLE).rename(columns={"value": "accuracy"})
    exits = metrics[metrics["exit"].gt(0) & metrics["protocol"].eq("") & metrics["metric"].isin(names)]
    alone = exits[exits.groupby(IDENTITY)["exit"].transform("max").eq(1)].assign(budget=INFEASIBLE)
    statics = alone.pivot(index=where, columns="metric", values="value").reindex(columns=names)
    return pd.concat([methods.reset_index(), statics.reset_index(), backbones[[*where, "accuracy"]]])


def read_latency(path: Path | str, dataset: str, arch: str) -> pd.DataFrame:
    """Read the rows of one data set and architecture from the csv of `write_latency`."""
    check_seal(path)
    texts = dict.fromkeys(("dataset", "arch", "method", "budget", "runtime", "device", "precision"), str)
    empty = ["", INFEASIBLE]  # earlier versions wrote "-"
    numbers = ("accuracy", "relative_cost", "relative_time_in_runtime", "differs", "file_mb", "peak_mb")
    rows = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=dict.fromkeys(numbers, empty))
    rows["budget"] = rows["budget"].replace("", INFEASIBLE)
    return rows[rows["dataset"].eq(dataset) & rows["arch"].eq(arch)]


def write_latency(table: pd.DataFrame, missing: Notes, csv_path: Path | str, md_path: Path | str) -> None:
    """Write the csv, and a readable table per data set, architecture, batch size, threads, runtime and precision.

    Args:
        missing: from `left_out`.
    """
    write_csv(table, csv_path)
    parts = [f"**{CAPTION}**\n"]
    for (dataset, arch), of_arch in table.groupby(["dataset", "arch"], sort=False):
        for _, rows in of_arch.groupby(HOW, sort=False):
            parts += [_block(own, rows) for _, own in rows.groupby(["runtime", "precision"], sort=False)]
        if note := missing.get((str(dataset), str(arch))):
            parts.append(f"{note}\n")
    write_sealed(md_path, "\n".join(parts))


def _block(rows: pd.DataFrame, every: pd.DataFrame) -> str:
    """Return the table of one runtime; every: the rows of all runtimes, at the same batch size and threads."""
    first = rows.iloc[0]
    threads = f"{first['threads']} thread{'s' * (int(first['threads']) != 1)}"
    title = (
        f"{title_of(first['dataset'], first['arch'])}, {first['runtime']} in {first['precision']}, batch size"
        f" {first['batch_size']}, {threads} of {first['device']}{_reference(every)}"
    )
    whole = rows["budget"].eq(INFEASIBLE)
    budgets = [INFEASIBLE] * bool(whole.any()) + list(rows.loc[~whole, "budget"].unique())
    heads = [WHOLE if budget == INFEASIBLE else budget_name(budget) for budget in budgets]
    sizes = [name for name in SIZES if rows[name].notna().any()]
    lines = [_line(str(method), own, budgets, sizes) for method, own in rows.groupby("method", sort=False)]
    return markdown_table(title, ["method", *heads, "differs", *(SIZES[name] for name in sizes)], lines)


def _reference(every: pd.DataFrame) -> str:
    """Return what 100 % is."""
    alone = every[every["method"].eq(BACKBONE)].sort_values("median_ms", kind="stable")
    if alone.empty:
        return ""
    speed, runtime = alone[["images_per_s", "runtime"]].iloc[0]
    return f"; 100 %: {float(f'{speed:.3g}'):,g} images/s ({BACKBONE} in {runtime})"


def _line(method: str, rows: pd.DataFrame, budgets: Sequence[str], sizes: Sequence[str]) -> list[str]:
    """Return the row of a method; sizes: columns of SIZES."""
    at = {row["budget"]: row for row in rows.to_dict("records")}
    times = [_entry(at[budget]) if budget in at else "" for budget in budgets]
    return [method, *times, _share(rows["differs"].max()), *(_size(rows[name].max()) for name in sizes)]


def _entry(row: Mapping[Any, Any]) -> str:
    accuracy = INFEASIBLE if math.isnan(row["accuracy"]) else f"{percent(row['accuracy']):.1f}"
    return f"{accuracy} ({_share(row['relative_time'])})"


def _share(value: float) -> str:
    return INFEASIBLE if math.isnan(value) else f"{100 * value:.0f} %"


def _size(megabytes: float) -> str:
    return INFEASIBLE if math.isnan(megabytes) else f"{megabytes:.1f}"
