"""Tables from the methods' metrics: grouped over seeds, as long csv, wide Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.errors import ZtwError
from ztw.evaluation.names import BACKBONE
from ztw.files import sealed, write_sealed
from ztw.reporting.readable import INFEASIBLE, Noise, Notes, blocks
from ztw.reporting.rendering import to_latex, to_markdown
from ztw.reporting.results import IDENTITY, Metrics
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
    """Accuracy at every budget: one row per data set, architecture, protocol, method and budget.

    mean, std (n - 1) and relative_cost (of the test samples, mean) are over the n seeds for which
    the budget is feasible; NaN where it is for none. Methods, budgets and protocols keep their order.
    partial: a method has no row where it has no result at all. Raises ZtwError when a method lacks a result.
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
    """The accuracy table with the backbone's own accuracy as the first row of every cell and protocol.

    The row has no budget, because the backbone has no thresholds; mean, std and n are over the seeds. A cell without
    the metric `backbone_accuracy` (every IC set trained the backbone as well) gets no row.
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


def _side_by_side(metrics: Metrics, names: list[str]) -> pd.DataFrame:
    """Metrics of budgets, a column each; a row is a seed of a method under a protocol at a budget."""
    found = metrics[metrics["metric"].isin(names) & metrics["protocol"].ne("")]
    table = found.pivot(index=[*IDENTITY, "protocol", "budget"], columns="metric", values="value")
    return table.reindex(columns=names)


def _check_methods(metrics: Metrics, methods: Sequence[str]) -> None:
    """Raise ZtwError for a method that some cell lacks."""
    for (dataset, arch), found in metrics.groupby(CELL, sort=False)["method"]:
        if missing := [method for method in methods if method not in set(found)]:
            raise ZtwError(f"table: no result of {missing[0]} on {dataset}/{arch}")


def _check_budgets(metrics: Metrics, seeds: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Raise ZtwError for a budget that some seed of a method lacks."""
    every = metrics[IDENTITY].drop_duplicates().merge(wanted, on="method")[list(seeds.index.names)]
    for row in every[~pd.MultiIndex.from_frame(every).isin(seeds.index)].itertuples():
        raise ZtwError(
            f"table: {row.method} on {row.dataset}/{row.arch}/seed{row.seed} has no accuracy at budget"
            f" {row.budget} by protocol {row.protocol}"
        )


def per_exit_table(metrics: Metrics) -> pd.DataFrame:
    """Every metric that each exit has, if all samples left there: mean and std over the n seeds."""
    found = metrics[metrics["exit"].gt(0) & metrics["protocol"].eq("")]
    table = found.groupby([*CELL, "method", "exit", "metric"])["value"].agg(mean="mean", std="std", n="count")
    # exits as text: 1, 10, 11, 2, ...
    ordered = table.reset_index().sort_values(["exit", "metric"], key=lambda column: column.astype(str))
    return _as_they_come(ordered, metrics)[PER_EXIT]


def allowed_loss_table(metrics: Metrics) -> pd.DataFrame:
    """For methods whose thresholds follow an allowed loss of accuracy: what they lost on the test split.

    accuracy_loss, std: of the last exit's accuracy less the method's, over n seeds; largest: of any seed.
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
    return _as_they_come(table.reset_index(), metrics)[ALLOWED_LOSS]


def _as_they_come(table: pd.DataFrame, metrics: Metrics) -> pd.DataFrame:
    """The table's rows, cells and methods in the order of the metrics."""
    key = [*CELL, "method"]
    return metrics[key].drop_duplicates().merge(table, on=key)


def write_csv(table: pd.DataFrame, path: Path | str) -> None:
    """The long table, six decimals, empty where there is no value."""
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
    """Write the accuracy table in its three forms; noise, notes: see `ztw.reporting.readable.blocks`."""
    write_csv(table, csv_path)
    readable = blocks(table.to_dict("records"), noise, notes)
    write_sealed(md_path, to_markdown(readable))
    write_sealed(tex_path, to_latex(readable))
