"""Make tables of metrics over seeds, and write them as long csv, wide Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.errors import ZtwError
from ztw.evaluation.names import BACKBONE
from ztw.files import check_seal, sealed, write_sealed
from ztw.reporting.readable import DIFFERENCES, INFEASIBLE, Noise, Notes, blocks
from ztw.reporting.rendering import to_latex, to_markdown
from ztw.reporting.results import IDENTITY, Metrics
from ztw.study.kinds import STATIC
from ztw.study.settings import EvaluationSettings

CELL = ["dataset", "arch"]
COLUMNS = [*CELL, "method", "budget", "mean", "std", "n", "relative_cost", "protocol"]
PER_EXIT = [*CELL, "method", "exit", "metric", "mean", "std", "n"]
ALLOWED_LOSS = [
    *CELL,
    "method",
    "protocol",
    "allowed_loss",
    "accuracy_loss",
    "std",
    "largest",
    "relative_cost",
    "n",
]


def accuracy_table(
    metrics: Metrics, methods: Sequence[str], evaluation: EvaluationSettings, partial: bool = False
) -> pd.DataFrame:
    """Return accuracy at every budget: one row per data set, architecture, protocol, method and budget.

    mean, std (n - 1) and relative_cost (real cost of the test samples) are over the n seeds for which the budget is
    feasible; NaN if n is 0.

    Args:
        methods: order of the methods.
        evaluation: order of protocols and budgets.
        partial: leave out methods without any result.

    Raises:
        ZtwError: if a method lacks a result.
    """
    wanted = pd.DataFrame(
        product(evaluation.protocols, methods, map(str, evaluation.budgets)),
        columns=["protocol", "method", "budget"],
    )
    seeds = _side_by_side(metrics, ["accuracy", "relative_cost"])
    if not partial:
        _check_methods(metrics, methods)
    _check_budgets(metrics, seeds, wanted)
    table = seeds.groupby([*CELL, *wanted]).agg(
        mean=("accuracy", "mean"),
        std=("accuracy", "std"),
        n=("accuracy", "count"),
        relative_cost=("relative_cost", "mean"),
    )
    order = metrics[CELL].drop_duplicates().merge(wanted, how="cross")
    found = order.merge(metrics[[*CELL, "method"]].drop_duplicates())
    return found.merge(table.reset_index(), how="left")[COLUMNS]


def with_backbone(table: pd.DataFrame, metrics: Metrics) -> pd.DataFrame:
    """Add the backbone's accuracy as the first row of every data set, architecture and protocol.

    The row has no budget, because the backbone has no thresholds. If every IC set trained the backbone, there is no
    such row, because no job has measured `backbone_accuracy`.
    """
    known = metrics[metrics["metric"].eq("backbone_accuracy")].drop_duplicates(IDENTITY[:3])
    alone = known.groupby(CELL).agg(mean=("value", "mean"), std=("value", "std"), n=("value", "count"))
    of_cell = alone.to_dict("index")
    rows: list[dict[Any, Any]] = []
    for (dataset, arch, protocol), methods in table.groupby([*CELL, "protocol"], sort=False):
        if (dataset, arch) in of_cell:
            named = {"dataset": dataset, "arch": arch, "protocol": protocol, "method": BACKBONE}
            rows.append({**named, "budget": INFEASIBLE, "relative_cost": 1.0, **of_cell[dataset, arch]})
        rows += methods.to_dict("records")
    return pd.DataFrame(rows, columns=COLUMNS)


def with_kinds(table: pd.DataFrame, kinds: Mapping[str, str]) -> pd.DataFrame:
    """Add a last column with the kind of each method; kinds: see `ztw.study.kinds`."""
    return table.assign(kind=table["method"].map({BACKBONE: STATIC, **kinds}))


def _side_by_side(metrics: Metrics, names: list[str]) -> pd.DataFrame:
    """Return some metrics at budgets as columns, with one row per seed, method, protocol and budget."""
    found = metrics[metrics["metric"].isin(names) & metrics["protocol"].ne("")]
    table = found.pivot(index=[*IDENTITY, "protocol", "budget"], columns="metric", values="value")
    return table.reindex(columns=names)


def _check_methods(metrics: Metrics, methods: Sequence[str]) -> None:
    for (dataset, arch), found in metrics.groupby(CELL, sort=False)["method"]:
        if missing := [method for method in methods if method not in set(found)]:
            raise ZtwError(f"table: no result of {missing[0]} on {dataset}/{arch}")


def _check_budgets(metrics: Metrics, seeds: pd.DataFrame, wanted: pd.DataFrame) -> None:
    every = metrics[IDENTITY].drop_duplicates().merge(wanted, on="method")[list(seeds.index.names)]
    for row in every[~pd.MultiIndex.from_frame(every).isin(seeds.index)].itertuples():
        raise ZtwError(
            f"table: {row.method} on {row.dataset}/{row.arch}/seed{row.seed} has no accuracy at budget"
            f" {row.budget} by protocol {row.protocol}"
        )


def per_exit_table(metrics: Metrics) -> pd.DataFrame:
    """Return every metric of each exit if all samples left there: mean and std over n seeds."""
    found = metrics[metrics["exit"].gt(0) & metrics["protocol"].eq("")]
    table = found.groupby([*CELL, "method", "exit", "metric"])["value"].agg(mean="mean", std="std", n="count")
    # Exits are sorted as text: 1, 10, 11, 2, ...
    ordered = table.reset_index().sort_values(["exit", "metric"], key=lambda column: column.astype(str))
    return _in_order_of(ordered, metrics)[PER_EXIT]


def allowed_loss_table(metrics: Metrics) -> pd.DataFrame:
    """Return the loss of accuracy on the test split of methods whose thresholds are chosen for an allowed loss.

    accuracy_loss, std and largest: mean, standard deviation and maximum over n seeds of the last exit's accuracy minus
    the method's.
    """
    loss, cost = "loss_at_allowed_loss", "relative_cost_at_allowed_loss"
    seeds = _side_by_side(metrics, [loss, cost]).reset_index()
    seeds["allowed_loss"] = seeds["budget"].astype(float)
    table = seeds.groupby([*CELL, "method", "protocol", "allowed_loss"]).agg(
        accuracy_loss=(loss, "mean"),
        std=(loss, "std"),
        largest=(loss, "max"),
        relative_cost=(cost, "mean"),
        n=(loss, "count"),
    )
    return _in_order_of(table.reset_index(), metrics)[ALLOWED_LOSS]


def training_table(metrics: Metrics) -> pd.DataFrame:
    """Return what the training of each method cost: passes over the training images and MACs, mean over n seeds."""
    found = metrics[metrics["metric"].isin(["training_passes", "training_macs"])]
    table = found.groupby([*CELL, "method", "metric"])["value"].agg(mean="mean", n="count")
    return _in_order_of(table.reset_index(), metrics)[[*CELL, "method", "metric", "mean", "n"]]


def _in_order_of(table: pd.DataFrame, metrics: Metrics) -> pd.DataFrame:
    """Sort a table's cells and methods in the order of the metrics."""
    key = [*CELL, "method"]
    return metrics[key].drop_duplicates().merge(table, on=key)


def read_differences(path: Path | str) -> pd.DataFrame:
    """Read the table of the job `compare_methods`; budgets stay text."""
    check_seal(path)
    return pd.read_csv(path, dtype=dict.fromkeys(DIFFERENCES[:6], "str"), keep_default_na=False)


def write_csv(table: pd.DataFrame, path: Path | str) -> None:
    """Write a table as csv, with six decimals, and nothing for a missing value."""
    if "budget" in table:
        table = table.assign(budget=table["budget"].where(table["budget"].ne(INFEASIBLE)))
    with sealed(path) as scratch:
        table.to_csv(scratch, index=False, float_format="%.6f", lineterminator="\r\n")


def write_tables(
    table: pd.DataFrame,
    noise: Noise,
    notes: Notes,
    csv_path: Path | str,
    md_path: Path | str,
    tex_path: Path | str,
) -> None:
    """Write the accuracy table as csv, Markdown and LaTeX; noise, notes: see `ztw.reporting.readable.blocks`."""
    write_csv(table, csv_path)
    readable = blocks(table.to_dict("records"), noise, notes)
    write_sealed(md_path, to_markdown(readable))
    write_sealed(tex_path, to_latex(readable))
