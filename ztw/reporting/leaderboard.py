"""Join the tables of all published studies to one, the leaderboard. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ztw.evaluation.names import BACKBONE
from ztw.files import read_json, write_text
from ztw.reporting.frontier_table import MACS
from ztw.study.config import check_study, read_config
from ztw.study.kinds import STATIC
from ztw.study.layout import Layout
from ztw.study.settings import Study

PROTOCOL = "held-out"
POINT = ["dataset", "arch", "method", "budget"]
TIMED = ["dataset", "arch", "method", "timed_at"]
COLUMNS = [
    *("study", *POINT, "kind", "accuracy", "std", "seeds", "relative_cost"),
    *("static", "distance", "low", "high"),
    *("relative_time", "runtime", "batch_size", "threads"),
    *("config", "logits", "commit"),
]


def write_leaderboard(reference: Path) -> None:
    """Write `leaderboard.csv` in the folder of published studies."""
    table = leaderboard(reference)
    write_text(reference / "leaderboard.csv", table.to_csv(index=False, lineterminator="\r\n"))


def leaderboard(reference: Path) -> pd.DataFrame:
    """Return a row per study, data set, architecture, method and budget, as text with COLUMNS.

    Args:
        reference: the folder of published studies.
    """
    studies = sorted(config.parent for config in reference.glob("*/config.yaml"))
    return pd.concat([_of_study(folder) for folder in studies], ignore_index=True)[COLUMNS].fillna("")


def _of_study(folder: Path) -> pd.DataFrame:
    """Return the accuracies of one study, with their distances to static networks and measured times."""
    study, made = check_study(read_config(folder / "config.yaml")), Layout(folder)
    table = _read(made, "accuracy_at_budget").rename(columns={"mean": "accuracy", "n": "seeds"})
    table = table[table["protocol"].eq(PROTOCOL) & table["accuracy"].ne("")]
    table["kind"] = table["method"].map(study.kinds).fillna(BACKBONE)
    table["timed_at"] = table["budget"].where(table["kind"].ne(STATIC), "")  # static networks are timed once
    table = table.merge(_distances(made), how="left", on=POINT).merge(_times(made), how="left", on=TIMED)
    origins = [_origin(study, folder, row) for row in table[POINT].to_dict("records")]
    return pd.concat([table, pd.DataFrame(origins)], axis=1).assign(study=folder.name)


def _read(made: Layout, name: str) -> pd.DataFrame:
    """Read a table as text, "" for no value; no table: no rows."""
    path = made.table(name)
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()


def _distances(made: Layout) -> pd.DataFrame:
    """Return the best static network within each budget, and how far above it each method is, with the interval."""
    best, pairs = _read(made, "frontier"), _read(made, "differences")
    if best.empty or pairs.empty:
        return pd.DataFrame(columns=[*POINT, "static", "distance", "low", "high"], dtype=str)
    best = best[best["unit"].eq(MACS) & best["kind"].eq(STATIC)].rename(columns={"method": "static"})
    best["budget"] = best["budget"].astype(float).astype(str)
    pairs = pairs[pairs["protocol"].eq(PROTOCOL)].rename(columns={"first": "method", "second": "static"})
    pairs = pairs.rename(columns={"difference": "distance"})
    swapped = pairs.rename(columns={"method": "static", "static": "method", "low": "high", "high": "low"})
    for name in ("distance", "low", "high"):
        swapped[name] = swapped[name].map(_negative)
    found = best[["dataset", "arch", "budget", "static"]].merge(pd.concat([pairs, swapped]))
    return found[[*POINT, "static", "distance", "low", "high"]]


def _negative(number: str) -> str:
    """Change the sign of a number that is written as text."""
    return number.removeprefix("-") if number.startswith("-") else f"-{number}" if number else ""


def _times(made: Layout) -> pd.DataFrame:
    """Return the time of each method in its fastest runtime, at the smallest batch size with the fewest threads."""
    columns = ["relative_time", "runtime", "batch_size", "threads"]
    times = _read(made, "latency").rename(columns={"budget": "timed_at"})
    if times.empty:
        return pd.DataFrame(columns=[*TIMED, *columns], dtype=str)
    order = ["batch_size", "threads", "relative_time"]
    fastest = times.sort_values(order, key=lambda column: column.astype(float)).drop_duplicates(TIMED)
    return fastest[[*TIMED, *columns]]


def _origin(study: Study, folder: Path, row: dict[Any, str]) -> dict[str, str]:
    """Return where a row comes from: paths of the config and the logits, and the commits that published its cells."""
    cells, method = folder / row["dataset"] / row["arch"], study.methods.get(row["method"])
    name = method.ics or row["method"] if method else ""
    logits = sorted(cells.glob(f"seed*/predictions/{name}.safetensors")) if name else []
    commits = {read_json(file)["published_at"] for file in cells.glob("seed*/provenance.json")}
    return {
        "config": f"{folder.name}/config.yaml",
        "logits": logits[0].relative_to(folder.parent).as_posix() if logits else "",
        "commit": ", ".join(sorted(commits)),
    }
