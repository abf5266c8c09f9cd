"""The job that makes the tables from all cells' results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ztw.reporting.published import COMPARISON, comparison_table, read_published
from ztw.reporting.tables import (
    ALLOWED_LOSS,
    PER_EXIT,
    Result,
    Row,
    allowed_loss_table,
    per_exit_table,
    write_csv,
)


def write_more_tables(
    results: Sequence[Result],
    rows: Sequence[Row],
    published: Path | str,
    protocols: Sequence[str],
    per_exit: str,
    allowed_loss: str,
    comparison: str,
) -> None:
    """Write the three tables; rows: the accuracy table's."""
    compared = comparison_table(rows, read_published(published), protocols)
    write_csv(compared, comparison, COMPARISON)
    write_csv(per_exit_table(results), per_exit, PER_EXIT)
    write_csv(allowed_loss_table(results), allowed_loss, ALLOWED_LOSS)
