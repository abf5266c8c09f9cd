"""Make the table of measured times, with accuracy and cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
HOW = ["batch_size", "threads"]
SHOWN = (
    *("method", "budget", "runtime", "accuracy", "MACs", "time", "in its runtime"),
    *("median (ms)", "95 % (ms)", "images/s", "differs", "file (MB)", "memory (MB)"),
)
REFERENCE = (
    "time: 100 % is the backbone alone in the runtime that is fastest for it; differs: share of the timed images that"
    " leave elsewhere or get another class than in pytorch; file: the exported network; memory: the peak that ONNX"
    " Runtime adds to a process for one sample through all blocks"
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
    """Write the csv, and a readable table per data set, architecture, batch size and threads.

    Args:
        missing: from `left_out`.
    """
    write_csv(table, csv_path)
    blocks = []
    for (dataset, arch, size, _threads), rows in table.groupby(["dataset", "arch", *HOW], sort=False):
        first = rows.iloc[0]
        where = f"{first['device']}, {first['threads']} thread{'s' * (int(first['threads']) != 1)}"
        how = ", ".join(f"{runtime} in {precision}" for runtime, precision in _precisions(rows))
        title = f"{dataset}, {arch}: measured on {where}, batch size {size}, {how}; {REFERENCE}"
        note = missing.get((str(dataset), str(arch)))
        block = markdown_table(title, SHOWN, map(_texts, rows.to_dict("records")))
        blocks.append(f"{block}\n{note}\n" if note else block)
    write_sealed(md_path, "\n".join(blocks))


def _precisions(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(rows[["runtime", "precision"]].drop_duplicates().itertuples(index=False, name=None))


def _texts(row: Mapping[Any, Any]) -> list[str]:
    return [
        row["method"],
        "" if row["budget"] == INFEASIBLE else budget_name(row["budget"]),
        f"{row['runtime']} int8" if row["precision"] == "int8" else row["runtime"],
        INFEASIBLE if math.isnan(row["accuracy"]) else f"{percent(row['accuracy']):.1f} %",
        _share(row["relative_cost"]),
        _share(row["relative_time"]),
        _share(row["relative_time_in_runtime"]),
        f"{row['median_ms']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{row['images_per_s']:.0f}",
        _share(row["differs"]),
        *(INFEASIBLE if math.isnan(row[name]) else f"{row[name]:.1f}" for name in ("file_mb", "peak_mb")),
    ]


def _share(value: float) -> str:
    return INFEASIBLE if math.isnan(value) else f"{value:.0%}"
