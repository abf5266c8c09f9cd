"""Render tables as Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from ztw.reporting.readable import SAME, Block

MARKDOWN = {"best": "**{}**", "same": f"{{}} {SAME}", "": "{}", "heading": "*{}*"}
LATEX = {"best": "\\textbf{{{}}}", "same": f"{{}} {SAME}", "": "{}", "heading": "\\textit{{{}}}"}


def markdown_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Render a table with a title; the first column is left-aligned, the others right-aligned."""
    lines = [f"**{title}**\n", _line(columns), "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *map(_line, rows), ""])


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def to_markdown(blocks: Iterable[Block]) -> str:
    """Render one table per block, with its note.

    The best of a budget is bold in each group, entries within noise of it have a mark.
    """
    return "\n".join(
        markdown_table(block.title, ["method", *block.budgets], _texts(block, MARKDOWN))
        + (f"\n{block.note}\n" if block.note else "")
        for block in blocks
    )


def to_latex(blocks: Iterable[Block]) -> str:
    """Render the same tables in LaTeX, for the package booktabs."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(map(_latex_table, blocks))


def _latex_table(block: Block) -> str:
    heads = [_tex(text) for text in ("method", *block.budgets)]
    texts = [[_tex(text) for text in row] for row in _texts(block, LATEX)]
    for row in texts[1:]:  # a line above each group but the first row of the table
        row[0] = row[0].replace("\\textit", "\\midrule\n\\textit")
    return (
        pd.DataFrame(texts)
        .style.hide(axis="index")
        .relabel_index(heads, axis="columns")  # two budgets may have the same text
        .to_latex(
            hrules=True,
            column_format="l" + "r" * len(block.budgets),
            caption=_tex(f"{block.title}. {block.note}" if block.note else block.title),
            position_float="centering",
        )
    )


def _texts(block: Block, look: dict[str, str]) -> list[list[str]]:
    """Return the rows of a block as text, the method first; each group starts with a row of its heading."""
    heads = {methods[0]: heading for heading, methods in block.groups.items()}
    rows = []
    for method, entries in block.rows.items():
        if method in heads:
            rows.append([look["heading"].format(heads[method]), *[""] * len(entries)])
        rows.append([method, *(look[entry.mark].format(entry.text) for entry in entries)])
    return rows


def _tex(text: str) -> str:
    for char in "&%_#":
        text = text.replace(char, f"\\{char}")
    return text.replace("±", "$\\pm$").replace(SAME, "$\\approx$")
