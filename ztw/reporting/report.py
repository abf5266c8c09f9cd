"""Write the report of a study: one page with its question, its answer, tables and interactive charts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from ztw.errors import ZtwError
from ztw.files import write_text
from ztw.reporting import charts
from ztw.reporting.answer import BRACKETS, WINS, frontier_answers, leader_answer, middle_budget
from ztw.reporting.charts import drawn, json_text
from ztw.reporting.explorer import explored, fastest_times, slider_budgets
from ztw.reporting.readable import budget_name
from ztw.reporting.report_details import details
from ztw.reporting.report_source import CellSource, ReportSource
from ztw.reporting.report_tables import accuracy_table, duration_table, frontier_tables
from ztw.study.kinds import EARLY_EXITS, STATIC
from ztw.study.layout import Layout, figure_title

PAGE = files("ztw.reporting") / "page"


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a study as one HTML file that loads nothing else.

    Args:
        folder: of a finished run, results/<study>, or of a published study.
        out: the file to write; report.html in `folder` unless given.

    Returns:
        The path of the report.

    Raises:
        ZtwError: if the folder has no results, or a file is missing or altered.
    """
    source = ReportSource(Layout(Path(folder)))
    if not source.layout.table("metrics").is_file():
        raise ZtwError(f"{folder}: has no tables of a finished study; run make reproduce first")
    target = source.layout.report if out is None else Path(out)
    write_text(target, _page(source))
    return target


def _page(source: ReportSource) -> str:
    cells, study = source.cells(), source.study
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["marked"] = marked
    text = (PAGE / "report.html").read_text(encoding="utf-8")
    seeds = len(study.seeds)
    return environment.from_string(text).render(
        study=source.layout.folder.name,
        what=f"{'; '.join(cell.title for cell in cells)}; {seeds} seed{'s' * (seeds > 1)}",
        question=source.question,
        brackets=f"{BRACKETS} {WINS}" if any(map(_is_compared, cells)) else BRACKETS,
        cells=[_cell(cell) for cell in cells],
        provenance=source.provenance(),
        durations=duration_table(source.durations()),
        config=source.config,
        css=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
        js=(PAGE / "report.js").read_text(encoding="utf-8"),
        bundle=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed").replace("</script", "<\\/script"),
    )


def marked(text: str) -> Markup:
    """Convert `code` and **bold** of a text to HTML."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html))


def _cell(cell: CellSource) -> dict[str, Any]:
    """Return what the page shows of one data set and architecture."""
    kinds = cell.study.kinds
    early = [name for name in cell.methods if kinds[name] == EARLY_EXITS]
    of_early = cell.accuracies[cell.accuracies["method"].isin(early) & cell.accuracies["mean"].notna()]
    middle = middle_budget(of_early["budget"].unique())
    leader = leader_answer(of_early, cell.differences[cell.differences["protocol"].eq(cell.protocol)], middle)
    answers = [] if cell.frontier is None else frontier_answers(cell.frontier, kinds)
    return {
        "id": figure_title(cell.dataset, cell.arch),
        "title": cell.title,
        "network": cell.network,
        "answers": [*answers, *([leader] if leader else [])],
        "table": accuracy_table(cell.accuracies, cell.differences),
        **_explorer(cell, middle),
        "gallery": None if cell.gallery is None else _gallery(cell.gallery),
        "frontier": _frontier(cell),
        "details": details(cell, middle),
    }


def _explorer(cell: CellSource, middle: str) -> dict[str, Any]:
    """Return the parts of the page that follow the slider."""
    kinds, budgets = cell.study.kinds, slider_budgets(cell.study.evaluation.budgets)
    times = {} if cell.times is None else fastest_times(cell.times)
    shown = explored(cell.curves, cell.metrics, cell.methods, budgets, cell.protocol, times)
    first = [name for name in cell.study.headline if name in cell.methods]
    looks = cell.looks
    for one in shown:
        one["threshold"] = _threshold(cell, one["name"])
    index = int(abs(budgets - (0.5 if middle == "max" else float(middle))).argmin())
    title = f"Test accuracy within a budget against the budget, {cell.title}; the table below has the numbers"
    return {
        "budgets": budgets,
        "start": {"index": index, "name": budget_name(budgets[index])},
        "batches": [{"size": size, "title": f"batch {size}"} for size in times],
        "live": [
            {
                "name": name,
                "colour": looks[name][0] if name in looks else None,
                "dash": " ".join(map(str, looks[name][1])) if name in looks else "",
                "shown": name in first,
            }
            for name in cell.methods
        ],
        "with_exits": sorted(looks, key=lambda name: kinds[name] != EARLY_EXITS),
        "main": drawn(charts.main_chart(shown, budgets.tolist(), looks, cell.network), title, cell.finding()),
        "exits": drawn(charts.exit_chart([0.0]), f"Share of samples that leave at each exit, {cell.title}"),
        "shown_exits": _most_accurate(cell, [name for name in first if kinds[name] == EARLY_EXITS], middle),
        "data": json_text({"budgets": budgets.tolist(), "methods": shown}),
        "explorer_note": _explorer_note(cell),
    }


def _most_accurate(cell: CellSource, methods: Sequence[str], budget: str) -> str:
    """Return the most accurate of some methods at a budget, "" if none is feasible."""
    here = cell.accuracies[cell.accuracies["budget"].eq(budget) & cell.accuracies["method"].isin(methods)]
    here = here[here["mean"].notna()].sort_values("mean", ascending=False, kind="stable")
    return here["method"].iloc[0] if len(here) else ""


def _threshold(cell: CellSource, method: str) -> str:
    """Say what a method's parameter is: "number", a text to show instead of it, or "" for no threshold."""
    settings = cell.study.methods[method]
    if settings.static:
        return ""
    return "number" if settings.thresholds == "shared" else settings.thresholds.replace("_", " ")


def _explorer_note(cell: CellSource) -> str:
    chosen = "validation" if "validation" in set(cell.curves["split"]) else "test"
    text = f"Thresholds are chosen on the {chosen} split; accuracy and cost are those of the test split."
    if cell.curves["seed"].nunique() > 1:
        text += " Mean over seeds, the band is ± one standard deviation."
    if cell.study.kinds and any(cell.study.kinds[name] == STATIC for name in cell.methods):
        text += " Diamonds are networks without exits."
    if cell.times is not None:
        text += " Times: mean of a sample in the fastest runtime, measured at the study's budgets with the first seed."
    return text


def _gallery(gallery: Mapping[str, Any]) -> dict[str, Any]:
    """Return the example images with the texts under them."""
    groups = [
        {"title": group["title"], "samples": [_sample(**sample) for sample in group["samples"]]}
        for group in gallery["groups"]
    ]
    note = (
        f"Test images, drawn at random, of `{gallery['method']}` at {budget_name(gallery['budget'])} of the MACs, seed"
        f" {gallery['seed']}. Under each image: the predicted class. A dashed frame is a wrong prediction."
    )
    return {"note": note, "groups": groups}


def _sample(label: str, predicted: str, image: str) -> dict[str, Any]:
    right = label == predicted
    text = predicted if right else f"{predicted}, is {label}"
    return {"image": image, "alt": label, "text": text, "right": right}


def _is_compared(cell: CellSource) -> bool:
    """Return whether early exits have a rival within some budget."""
    return cell.frontier is not None and bool(cell.frontier["rival"].ne("").any())


def _frontier(cell: CellSource) -> dict[str, Any] | None:
    if cell.frontier is None or not _is_compared(cell):
        return None
    units = list(cell.frontier["unit"].unique())
    text = (
        "Accuracy of the best method of each kind against the budget in {}; the table below has the numbers"
    )
    return {
        "charts": [
            drawn(charts.frontier_chart(cell.frontier, unit), text.format(unit), f"In {unit}")
            for unit in units
        ],
        "tables": frontier_tables(cell.frontier),
    }
