"""The table of measured times, with accuracy and cost beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.evaluation.names import BACKBONE
from ztw.files import check_seal, read_json, write_sealed
from ztw.reporting.readable import INFEASIBLE, budget_name, percent
from ztw.reporting.rendering import markdown_table
from ztw.reporting.results import IDENTITY, Metrics
from ztw.reporting.tables import write_csv

COLUMNS = [
    "dataset",
    "arch",
    "method",
    "budget",
    "runtime",
    "batch_size",
    "median_ms",
    "p95_ms",
    "images_per_s",
    "relative_time",
    "relative_time_in_runtime",
    "differs",
    "accuracy",
    "relative_cost",
    "device",
    "precision",
    "threads",
]
SHOWN = (
    "method",
    "budget",
    "runtime",
    "accuracy",
    "MACs",
    "time",
    "in its runtime",
    "median (ms)",
    "95 % (ms)",
    "images/s",
    "differs",
)
REFERENCE = (
    "time: 100 % is the backbone alone in the runtime that is fastest for it; differs: share of the timed images that"
    " leave elsewhere or get another class than in pytorch"
)


def latency_table(files: Iterable[str], metrics: Metrics) -> pd.DataFrame:
    """Measured times with accuracy and cost of the same seed's test split beside them.

    files: of the job `measure_latency`; metrics: see `ztw.reporting.results`. relative_time: as a share of what the
    backbone alone takes for the same batches in the runtime that is fastest for it (smallest median);
    relative_time_in_runtime: of what it takes in the row's own runtime, NaN where it was not timed there.
    """
    times = pd.concat([_times(read_json(file)) for file in files], ignore_index=True)
    table = times.merge(_known(metrics), how="left", on=[*IDENTITY, "budget"])
    table.loc[table["method"] == BACKBONE, "relative_cost"] = 1.0
    return table[COLUMNS]


def _times(facts: dict[str, Any]) -> pd.DataFrame:
    """The rows of one file; what has no budget, as the backbone alone, has "-"."""
    found = [
        {**row, "budget": INFEASIBLE if row["budget"] is None else str(row["budget"])}
        for row in facts["rows"]
    ]
    rows = pd.DataFrame(found).assign(**{name: facts[name] for name in IDENTITY[:3]})
    alone = rows[rows["method"] == BACKBONE].sort_values("median_ms", kind="stable")
    fastest = alone.drop_duplicates("batch_size").set_index("batch_size")["images_per_s"]
    own = alone.drop_duplicates(["batch_size", "runtime"]).set_index(["batch_size", "runtime"])[
        "images_per_s"
    ]
    in_runtime = own.reindex(pd.MultiIndex.from_frame(rows[["batch_size", "runtime"]])).to_numpy()
    return rows.assign(
        relative_time=rows["batch_size"].map(fastest) / rows["images_per_s"],
        relative_time_in_runtime=in_runtime / rows["images_per_s"],
    )


def shortest_times(file: Path | str) -> dict[str, dict[str, float]]:
    """method -> budget -> its smallest relative time in any runtime, at the smallest batch size that was timed.

    file: of the job `measure_latency`; relative_time as in `latency_table`.
    """
    times = _times(read_json(file))
    smallest = times[times["batch_size"].eq(times["batch_size"].min())]
    shortest = smallest.sort_values("relative_time").drop_duplicates(["method", "budget"])
    found: dict[str, dict[str, float]] = {}
    for row in shortest.to_dict("records"):
        found.setdefault(row["method"], {})[row["budget"]] = row["relative_time"]
    return found


def _known(metrics: Metrics) -> pd.DataFrame:
    """Accuracy and relative cost of each method at each budget; at "-" those of static networks, the backbone's too."""
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
    """The rows of one data set and architecture, as `write_latency` wrote them."""
    check_seal(path)
    texts = dict.fromkeys(("dataset", "arch", "method", "budget", "runtime", "device", "precision"), str)
    empty = ["", INFEASIBLE]  # which earlier versions wrote
    missing = dict.fromkeys(("accuracy", "relative_cost", "relative_time_in_runtime"), empty)
    rows = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=missing)
    rows["budget"] = rows["budget"].replace("", INFEASIBLE)
    return rows[rows["dataset"].eq(dataset) & rows["arch"].eq(arch)]


def write_latency(table: pd.DataFrame, csv_path: str, md_path: str) -> None:
    """The long table, and a readable one: a block for each cell and batch size."""
    write_csv(table, csv_path)
    blocks = []
    for (dataset, arch, size), rows in table.groupby(["dataset", "arch", "batch_size"], sort=False):
        first = rows.iloc[0]
        where = f"{first['device']}, {first['threads']} thread{'s' * (int(first['threads']) != 1)}"
        how = ", ".join(f"{runtime} in {precision}" for runtime, precision in _precisions(rows))
        title = f"{dataset}, {arch}: measured on {where}, batch size {size}, {how}; {REFERENCE}"
        blocks.append(markdown_table(title, SHOWN, map(_texts, rows.to_dict("records"))))
    write_sealed(md_path, "\n".join(blocks))


def _precisions(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Each runtime with its precision."""
    return list(rows[["runtime", "precision"]].drop_duplicates().itertuples(index=False, name=None))


def _texts(row: Mapping[Any, Any]) -> list[str]:
    return [
        row["method"],
        "" if row["budget"] == INFEASIBLE else budget_name(row["budget"]),
        row["runtime"],
        INFEASIBLE if math.isnan(row["accuracy"]) else f"{percent(row['accuracy']):.1f} %",
        _share(row["relative_cost"]),
        _share(row["relative_time"]),
        _share(row["relative_time_in_runtime"]),
        f"{row['median_ms']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{row['images_per_s']:.0f}",
        _share(row["differs"]),
    ]


def _share(value: float) -> str:
    return INFEASIBLE if math.isnan(value) else f"{value:.0%}"
