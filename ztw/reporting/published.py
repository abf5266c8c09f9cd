"""Compare our accuracies with published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from scipy.special import stdtrit

from ztw.errors import ZtwError

KEY = ["dataset", "arch", "method", "budget"]
PUBLISHED = ["source", "table", *KEY, "value"]
COMPARISON = [
    *("source", "table", *KEY, "published", "ours", "std", "n"),
    *("difference", "low", "high", "protocol"),
]
LEVEL = 0.95  # coverage of the interval


def read_published(path: Path | str) -> pd.DataFrame:
    """Read published accuracies; `value` in percent.

    Raises:
        ZtwError: if the file cannot be read, or for the first invalid line.
    """
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except OSError as error:
        raise ZtwError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ZtwError(f"{path}: not a csv table in UTF-8 ({' '.join(str(error).split())})") from error
    if list(rows.columns) != PUBLISHED:
        raise ZtwError(f"{path}: columns {', '.join(rows.columns)}; must be {', '.join(PUBLISHED)}")
    value, share = (pd.to_numeric(rows[name], errors="coerce") for name in ("value", "budget"))
    valid = value.between(0, 100) & (rows["budget"].eq("max") | share.gt(0))
    if not valid.all():
        line = int(valid.to_numpy().argmin())  # the first invalid line
        raise ZtwError(
            f"{path}: line {line + 2}: value {rows['value'][line]!r} at budget {rows['budget'][line]!r}; value must"
            " be a percentage in 0..100, budget a share of the backbone's cost above 0 or max"
        )
    return rows.assign(value=value, budget=_plain(rows["budget"]))


def comparison_table(table: pd.DataFrame, published: pd.DataFrame, protocols: Sequence[str]) -> pd.DataFrame:
    """Return our accuracies (%) beside published ones, a row for each published value that is ours, too.

    low and high are the interval of the difference, ours - published, by Student's t over our seeds; NaN for one
    seed. The published value is taken as exact, because papers rarely report its spread. Our protocol is the one
    nearest to the papers': `published`, else `paper`, else the study's first.

    Args:
        table: from `accuracy_table`.
    """
    protocol = next((name for name in ("published", "paper") if name in protocols), protocols[0])
    ours = table[table["protocol"] == protocol]
    ours = ours.assign(budget=_plain(ours["budget"]), ours=100 * ours["mean"], std=100 * ours["std"])
    beside = ours.merge(published.rename(columns={"value": "published"}), on=KEY)
    difference = beside["ours"] - beside["published"]
    half = stdtrit(beside["n"].where(beside["n"] > 1) - 1, (1 + LEVEL) / 2)
    half = half * beside["std"] / beside["n"].pow(0.5)
    return beside.assign(difference=difference, low=difference - half, high=difference + half)[COMPARISON]


def _plain(budgets: pd.Series) -> pd.Series:
    """Format budgets in the shortest form (0.50 as 0.5), so that equal budgets are equal texts."""
    return budgets.map(lambda budget: budget if budget == "max" else f"{float(budget):g}")
