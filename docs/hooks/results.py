"""Pages of the published results, made from results/reference: no number is typed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from ztw.catalogue.titles import title_of
from ztw.evaluation.published_logits import REFERENCE, published
from ztw.files import read_json
from ztw.reporting.leaderboard import leaderboard
from ztw.reporting.readable import budget_name, percent
from ztw.reporting.report import write_report

FIGURES = {
    "accuracy_cost": "Test accuracy against the mean cost of a sample, in MACs.",
    "accuracy_cost_all": "The same for all methods.",
    "frontier": "The best method of each kind within every budget.",
    "accuracy_time": "Test accuracy against the measured time, as a share of the backbone's.",
    "accuracy_time_all": "The same for all methods, runtimes, batch sizes and numbers of threads.",
    "exit_accuracy": "Test accuracy of each exit, if all samples left there.",
    "exit_shares": "Share of the test samples that have left by each exit, at every budget.",
    "hindsight_improvability": "Share of an exit's errors that an earlier exit classifies correctly.",
    "gallery": "Example images that leave first, in the middle and last.",
}
MAIN = ("accuracy_cost", "frontier", "gallery")
COPIED = ("*/figures/*.png", "bench/growth.png", "leaderboard.csv")
STUDIES = sorted(config.parent for config in REFERENCE.glob("*/config.yaml"))
COMPARED = "ztw"


def on_config(config: MkDocsConfig) -> None:
    """Add the pages of the studies to the navigation."""
    assert config.nav is not None
    (pages,) = (entry["Results"] for entry in config.nav if "Results" in entry)
    pages[1:1] = [{_readme(folder)[0]: f"results/{folder.name}.md"} for folder in STUDIES]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages of all studies, their figures and reports."""
    for folder in STUDIES:
        content = "\n\n".join(_study(folder, leaderboard(REFERENCE)))
        files.append(File.generated(config, f"results/{folder.name}.md", content=content + "\n"))
    for path in (found for pattern in COPIED for found in REFERENCE.glob(pattern)):
        place = f"results/{path.relative_to(REFERENCE).as_posix().removeprefix('bench/')}"
        files.append(File.generated(config, place, abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill in the table of all studies, and the leaderboard."""
    if page.file.src_uri == "results/index.md":
        return re.sub("<!-- studies.*-->", _overview(leaderboard(REFERENCE)), markdown)
    if page.file.src_uri == "results/leaderboard.md":
        return re.sub("<!-- leaderboard.*-->", "\n\n".join(_leaderboard(leaderboard(REFERENCE))), markdown)
    return markdown


def on_post_build(config: MkDocsConfig) -> None:
    """Write the report of every study."""
    for folder in STUDIES:
        write_report(folder, Path(config.site_dir, "results", folder.name, "report.html"))


def _readme(folder: Path) -> tuple[str, str, dict[str, str]]:
    """Return title, question and sections of a study's README."""
    text = (folder / "README.md").read_text(encoding="utf-8").replace("../../../docs/", "../")
    start, *parts = re.split(r"(?m)^## ", text)
    title, _, question = start.removeprefix("# ").partition("\n")
    sections = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}
    return title, question.strip(), sections


def _study(folder: Path, table: pd.DataFrame) -> Iterator[str]:
    """Yield the parts of a study's page: question, answer, tables, figures, and what it does not show."""
    title, question, sections = _readme(folder)
    own = table[table["study"].eq(folder.name)]
    yield f"# {title}\n\n**Question.** {question}"
    yield f'<a href="{folder.name}/report.html">The interactive report of this study</a>'
    yield "## Answer"
    yield sections.pop("What it shows", "")
    yield "\n".join(f"- {sentence}" for sentence in _sentences(folder))
    yield "## Accuracy within a budget"
    yield from _blocks(folder, "accuracy_at_budget", "(protocol held-out)")
    yield from _figures(folder, lambda name: name in MAIN)
    yield from _differences(folder)
    yield "## Early exits against networks without exits"
    yield from _blocks(folder, "frontier")
    yield from _times(own)
    yield "## What it does not show"
    yield sections.pop("What it does not show", "")
    for name, text in sections.items():
        yield f"## {name}\n\n{text}"
    yield "## More figures"
    yield from _figures(folder, lambda name: name not in MAIN)
    yield from _origin(folder)


def _sentences(folder: Path) -> list[str]:
    """Return what the frontier says of each data set and network, in MACs and in the first measured time."""
    path = folder / "tables/frontier.md"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line for line in lines if line and line[0] not in "|*" and "no static network" not in line]


def _blocks(folder: Path, name: str, with_words: str = "") -> Iterator[str]:
    """Yield the tables of a Markdown file, each with its title as caption."""
    path = folder / f"tables/{name}.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = text.replace("] [", "] \\[")  # two intervals are no link
    for title, rest in re.findall(r"(?ms)^\*\*([^\n]*)\*\*\n(.*?)(?=^\*\*|\Z)", text):
        if with_words in title:
            rows = "\n".join(line for line in rest.splitlines() if line.startswith("|"))
            notes = [line for line in rest.splitlines() if line and not line.startswith("|")]
            yield _table(title, rows, "" if name == "frontier" else "\n".join(notes))


def _table(caption: str, rows: str, note: str = "") -> str:
    return f"{caption}.\n{{: .caption }}\n\n{rows}" + (f"\n\n{note}" if note else "")


def _figures(folder: Path, wanted: Callable[[str], bool]) -> Iterator[str]:
    for path in sorted((folder / "figures").glob("*.png")):
        title, _, name = path.stem.rpartition("-")
        if wanted(name):
            caption = FIGURES.get(name, name.replace("_", " "))
            yield f"![{title}: {caption}]({folder.name}/figures/{path.name})\n\n{title}. {caption}\n{{: .caption }}"


def _differences(folder: Path) -> Iterator[str]:
    """Yield tables of one method's accuracy minus that of each other method."""
    rows = pd.read_csv(folder / "tables/differences.csv", dtype={"budget": str}).dropna(subset="difference")
    rows = rows[rows["protocol"].eq("held-out")]
    ours = COMPARED if COMPARED in set(rows["first"]) | set(rows["second"]) else rows["first"].iloc[0]
    yield f"## {ours} against each method"
    for (dataset, arch), cell in rows.groupby(["dataset", "arch"], sort=False):
        found: dict[str, dict[str, str]] = {}
        for row in cell[cell["first"].eq(ours) | cell["second"].eq(ours)].to_dict("records"):
            sign, other = (1, row["second"]) if row["first"] == ours else (-1, row["first"])
            found.setdefault(other, {})[row["budget"]] = _interval(row, sign)
        caption = (
            f"{title_of(dataset, arch)}: test accuracy of {ours} minus that of each other method, in points, with the"
            " 95 % interval of a paired bootstrap over the test samples; bold: the interval excludes 0"
        )
        yield _table(caption, _wide(found, list(dict.fromkeys(cell["budget"]))))


def _interval(row: Mapping[str, Any], sign: int) -> str:
    low, high = sorted(sign * row[end] for end in ("low", "high"))
    text = f"{_points(sign * row['difference'])} [{_points(low)}, {_points(high)}]"
    return text if row["within_noise"] else f"**{text}**"


def _points(share: float) -> str:
    return f"{100 * share:.1f}".replace("-0.0", "0.0").replace("-", "\N{MINUS SIGN}")


def _wide(found: dict[str, dict[str, str]], budgets: list[str]) -> str:
    """Return a Markdown table with a row per method and a column per budget."""
    head = ["method", *map(budget_name, budgets)]
    rows = [[f"`{method}`", *(of.get(budget, "-") for budget in budgets)] for method, of in found.items()]
    lines = [head, ["---", *("---:" for _ in budgets)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _times(rows: pd.DataFrame) -> Iterator[str]:
    """Yield tables of the measured times of each method."""
    timed = rows[rows["relative_time"].ne("") & rows["budget"].ne("")]
    if len(timed):
        yield "## Measured time"
    for (dataset, arch), cell in timed.groupby(["dataset", "arch"], sort=False):
        found: dict[str, dict[str, str]] = {}
        for row in cell.to_dict("records"):
            found.setdefault(row["method"], {})[row["budget"]] = f"{100 * float(row['relative_time']):.0f} %"
        caption = (
            f"{title_of(dataset, arch)}: time of a method, as a share of the backbone's time, each in its fastest"
            f" runtime; batch size {cell['batch_size'].iloc[0]}, {cell['threads'].iloc[0]} thread(s); columns: budgets"
            " in MACs"
        )
        yield _table(caption, _wide(found, sorted(set(cell["budget"]), key=lambda b: (b == "max", b))))


def _origin(folder: Path) -> Iterator[str]:
    """Yield where the numbers come from: cells with machine, date and commit; config; published logits."""
    lines = ["| cell | date | machine | published by | PyTorch |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob("*/*/seed*/provenance.json")):
        about, cell = read_json(path), path.parent.relative_to(folder).as_posix()
        where = (cell, about["date"], about["machine"], about["published_at"], about["versions"]["torch"])
        lines.append(f"| {' | '.join(where)} |")
    yield "## Where the numbers come from\n\n" + "\n".join(lines)
    yield f"The study's file: [config.yaml](../files/results/reference/{folder.name}/config.yaml.md)."
    if names := [name for name in published() if name.startswith(f"{folder.name}/")]:
        lines = [f'    ztw.load_predictions("{name}")' for name in names]
        yield "Published logits, on which [your own rule](../how-to/leaderboard.md) can be scored without a training:"
        yield "\n".join(["```python", *(line.strip() for line in lines), "```"])


def _overview(table: pd.DataFrame) -> str:
    """Return the table of all studies."""
    lines = ["| study | data set | network | methods | seeds |", "|---|---|---|---:|---:|"]
    for folder in STUDIES:
        own = table[table["study"].eq(folder.name)]
        names = [", ".join(dict.fromkeys(own[name])) for name in ("dataset", "arch")]
        counts = [str(own["method"].nunique() - 1), own["seeds"].astype(int).max()]
        lines.append(
            f"| [{_readme(folder)[0]}]({folder.name}.md) | {' | '.join(map(str, [*names, *counts]))} |"
        )
    return "\n".join(lines)


def _leaderboard(table: pd.DataFrame) -> Iterator[str]:
    """Yield the tables of the leaderboard."""
    for (study, dataset, arch), rows in table.groupby(["study", "dataset", "arch"], sort=False):
        found: dict[str, dict[str, str]] = {}
        for row in rows[rows["budget"].ne("")].to_dict("records"):
            found.setdefault(row["method"], {})[row["budget"]] = _entry(row)
        budgets = sorted({budget for of in found.values() for budget in of}, key=lambda b: (b == "max", b))
        yield f"## {title_of(dataset, arch)}"
        first = rows.iloc[0]
        alone = f"{_accuracy(first)} %" if first["budget"] == "" else "not measured"
        logits = [f"`{name}`" for name in dict.fromkeys(rows["logits"]) if name]
        yield (
            f"Backbone alone: {alone}. Seeds: {rows['seeds'].astype(int).max()}. Study: [{study}]({study}.md),"
            f" [config](../files/results/reference/{study}/config.yaml.md)."
            + (f" Logits: {', '.join(logits)}." if logits else "")
        )
        yield _wide(found, budgets)


def _entry(row: Mapping[str, Any]) -> str:
    text = _accuracy(row)
    if row["distance"]:
        distance = _points(float(row["distance"]))
        known = float(row["low"]) > 0 or float(row["high"]) < 0
        text += f"<br><small>{f'<b>{distance}</b>' if known else distance} to {row['static']}</small>"
    if row["relative_time"]:
        text += f"<br><small>time {100 * float(row['relative_time']):.0f} %</small>"
    return text


def _accuracy(row: Mapping[str, Any]) -> str:
    spread = f" ± {percent(float(row['std'])):.1f}" if row["std"] else ""
    return f"{percent(float(row['accuracy'])):.1f}{spread}"
