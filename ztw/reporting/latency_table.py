"""The table of measured times, with accuracy and cost beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.evaluation.timing import BACKBONE
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
    "batch_size",
    "median_ms",
    "p95_ms",
    "images_per_s",
    "relative_time",
    "accuracy",
    "relative_cost",
    "device",
    "precision",
    "threads",
]
SHOWN = ("method", "budget", "accuracy", "MACs", "time", "median (ms)", "95 % (ms)", "images/s")


def latency_table(files: Iterable[str], metrics: Metrics) -> pd.DataFrame:
    """Measured times with accuracy and cost of the same seed's test split beside them.

    files: of the job `measure_latency`; metrics: see `ztw.reporting.results`. relative_time: a batch's time
    as a share of the backbone's for the same batch.
    """
    times = pd.concat([_times(read_json(file)) for file in files], ignore_index=True)
    table = times.merge(_known(metrics), how="left", on=[*IDENTITY, "budget"])
    table.loc[table["method"] == BACKBONE, "relative_cost"] = 1.0
    return table[COLUMNS]


def _times(facts: dict[str, Any]) -> pd.DataFrame:
    """The rows of one file; the backbone has no budget, "-"."""
    found = [
        {**row, "budget": INFEASIBLE if row["budget"] is None else str(row["budget"])}
        for row in facts["rows"]
    ]
    rows = pd.DataFrame(found).assign(**{name: facts[name] for name in IDENTITY[:3]})
    alone = rows[rows["method"] == BACKBONE].set_index("batch_size")["images_per_s"]
    return rows.assign(relative_time=rows["batch_size"].map(alone) / rows["images_per_s"])


def _known(metrics: Metrics) -> pd.DataFrame:
    """Accuracy and relative cost of each method at each budget; the backbone's accuracy at "-"."""
    names, where = ["accuracy", "relative_cost"], [*IDENTITY, "budget"]
    held_out = metrics[metrics["protocol"].eq("held-out") & metrics["metric"].isin(names)]
    methods = held_out.pivot(index=where, columns="metric", values="value").reindex(columns=names)
    backbones = metrics[metrics["metric"] == "backbone_accuracy"].drop_duplicates(IDENTITY[:3])
    backbones = backbones.assign(method=BACKBONE, budget=INFEASIBLE).rename(columns={"value": "accuracy"})
    return pd.concat([methods.reset_index(), backbones[[*where, "accuracy"]]])


def read_latency(path: Path | str, dataset: str, arch: str) -> pd.DataFrame:
    """The rows of one data set and architecture, as `write_latency` wrote them."""
    check_seal(path)
    texts = dict.fromkeys(("dataset", "arch", "method", "budget", "device", "precision"), str)
    missing = {name: [INFEASIBLE] for name in ("accuracy", "relative_cost")}
    rows = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=missing)
    return rows[rows["dataset"].eq(dataset) & rows["arch"].eq(arch)]


def write_latency(table: pd.DataFrame, csv_path: str, md_path: str) -> None:
    """The long table, and a readable one: a block for each cell and batch size."""
    write_csv(table, csv_path)
    blocks = []
    for (dataset, arch, size), rows in table.groupby(["dataset", "arch", "batch_size"], sort=False):
        where = "{device}, {precision}, {threads} threads".format(**rows.iloc[0])
        title = f"{dataset}, {arch}: measured on {where}, batch size {size}"
        blocks.append(markdown_table(title, SHOWN, map(_texts, rows.to_dict("records"))))
    write_sealed(md_path, "\n".join(blocks))


def _texts(row: Mapping[Any, Any]) -> list[str]:
    return [
        row["method"],
        "" if row["budget"] == INFEASIBLE else budget_name(row["budget"]),
        INFEASIBLE if math.isnan(row["accuracy"]) else f"{percent(row['accuracy']):.1f} %",
        f"{row['relative_cost']:.0%}",
        f"{row['relative_time']:.0%}",
        f"{row['median_ms']:.2f}",
        f"{row['p95_ms']:.2f}",
        f"{row['images_per_s']:.0f}",
    ]
