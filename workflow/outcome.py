"""Print what a finished run has found: the paths of its results, its sentences, and last its main table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ztw.errors import without_password
from ztw.files import check_seal, read_json
from ztw.reporting.mlflow_names import UNDELIVERED
from ztw.study.layout import Layout

WIDEST = 200  # characters in a line of a table in a log; a terminal shows a wider table in parts
GAP = 1  # spaces between two columns
SENTENCES = 2  # of the frontier of a cell: in MACs and in the time of the first batch size


def print_markdown(console: Console, text: str) -> None:
    """Print the titles, tables and notes of a Markdown text: `rich.markdown` would cut names at 80 columns."""
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            if not set(line) <= set("|-:"):
                rows.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        width, console.width = console.width, console.width if console.is_terminal else WIDEST
        for table in _tables(rows, console):
            console.print(table)
        console.width, rows = width, []
        if line:
            _print_line(console, line.replace("**", ""), bold=line.startswith("**"))


def _print_line(console: Console, line: str, bold: bool = False) -> None:
    # a terminal's own line breaks could fall inside a number; a log is read in windows of any width
    console.print(Text(line, style="bold" if bold else ""), soft_wrap=not console.is_terminal)


def _tables(rows: Sequence[Sequence[str]], console: Console) -> Iterator[Table]:
    """Yield a table, in parts that are not wider than the console; each part has the first column."""
    if not rows:
        return
    shown = [[_cell(cell, console) for cell in row] for row in rows]
    widths = [max(map(len, column)) + GAP for column in zip(*shown, strict=True)]
    for columns in _parts(widths, console.width):
        table = Table(box=SIMPLE, padding=(0, 0), width=None)
        for place in columns:
            table.add_column(shown[0][place], justify="right" if place else "left", no_wrap=True)
        for row in shown[1:]:
            table.add_row(*(row[place] for place in columns))
        yield table


def _parts(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yield the columns of each part: the first column, and as many others as fit."""
    part, used = [0], widths[0] + 2 * GAP
    for place in range(1, len(widths)):
        if len(part) > 1 and used + widths[place] > width:
            yield part
            part, used = [0], widths[0] + 2 * GAP
        part.append(place)
        used += widths[place]
    yield part


def _cell(text: str, console: Console) -> Text:
    """Show a cell that starts with ** in bold, and with * where there are no colours."""
    best, plain = text.startswith("**"), text.replace("**", "")
    return Text(f"*{plain}" if best and console.color_system is None else plain, style="bold" if best else "")


def main_tables(text: str, protocol: str) -> str:
    """Return the blocks of a text whose title, in **, names the protocol."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("**") or not blocks:
            blocks.append([])
        blocks[-1].append(line)
    return "\n".join("\n".join(block) for block in blocks if f"protocol {protocol})" in block[0])


def sentences(frontier: Path) -> list[str]:
    """Return what a table of the frontier amounts to, for each data set and architecture with something to compare."""
    # imports pandas, for which the start of a run does not wait
    from ztw.reporting.frontier_table import read_frontier, sentence

    found = []
    table = read_frontier(frontier)
    compared = table[table["rival"].ne("")]
    for (dataset, arch), cell in compared.groupby(["dataset", "arch"], sort=False):
        for unit, rows in islice(cell.groupby("unit", sort=False), SENTENCES):
            found.append(sentence(str(dataset), str(arch), str(unit), rows.to_dict("records")))
    return found


def undelivered(study: Path) -> dict[Path, str]:
    """Return file of run ids -> reason, for the cells that are not in MLflow yet."""
    files = {path: read_json(path) for path in sorted(study.rglob("seed*/runs.json"))}
    return {path: runs[UNDELIVERED] for path, runs in files.items() if UNDELIVERED in runs}


def show_results(console: Console, study: Path, tracking: str, config: str, protocol: str) -> None:
    """Print the paths of all results, the sentences of the frontier, and the tables of the first protocol.

    Raises:
        ZtwError: for an altered table.
    """
    table = Layout(study).table("accuracy_at_budget", "md")
    for path in sorted(table.parent.glob("*.*")):
        check_seal(path)
    if not table.exists():
        console.print("no table: this command did not ask for one")
        return
    console.print("\n".join(_paths(study, table, tracking, config)), soft_wrap=True, markup=False)
    if (frontier := table.with_name("frontier.csv")).exists():
        for line in sentences(frontier):
            _print_line(console, line)
    if console.color_system is None:
        console.print("*: the best within a budget")
    print_markdown(console, main_tables(table.read_text(encoding="utf-8"), protocol))


def _paths(study: Path, table: Path, tracking: str, config: str) -> list[str]:
    lines = [f"report   {Layout(study).report}", f"pipeline {Layout(study).pipeline}"]
    lines += [f"tables   {table.with_suffix('.csv')}, .md, .tex", f"figures  {study}/figures/"]
    if tracking != "none" and (late := undelivered(study)):
        lines.append(
            f"MLflow   {next(iter(late.values()))}; {len(late)} cells are not logged yet, the next call logs them:"
            f" make reproduce CONFIG={config}"
        )
    elif tracking == "sqlite":
        lines.append(f"MLflow   make ui CONFIG={config}")
    elif tracking != "none":
        lines.append(f"MLflow   {without_password(tracking)}")
    return lines
