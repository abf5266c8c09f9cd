"""Describe the report's interactive charts with Vega-Altair. The page gives them its colours of text and lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from ztw.reporting.style import GREY, style
from ztw.study.kinds import CASCADE, EARLY_EXITS, FIXED_EXIT, STATIC

Chart = alt.Chart | alt.LayerChart
# Colours by kind of method; of the page's text where figures use black and grey
KIND_COLOURS = {STATIC: "var(--ink)", CASCADE: "var(--soft)", FIXED_EXIT: "#A6761D", EARLY_EXITS: "#B10026"}
BARS = "#0072B2"
Looks = Mapping[str, tuple[str, list[float]]]  # method -> colour, and lengths of dashes and gaps in pixels
PERCENT = "format(100 * datum.value, '~r') + ' %'"  # as in the tables
HEIGHT, SMALL = 380, 250  # pixels
INK, NAME = "mark", "name"  # styles of marks and names in the colour of the page's text


def looks(families: Mapping[str, str]) -> dict[str, tuple[str, list[float]]]:
    """Return each method's colour and dashes, as in the figures; families: of all methods of the study."""
    return {
        name: (_colour(look["color"]), _dashes(look["linestyle"])) for name, look in style(families).items()
    }


def _colour(colour: str) -> str:
    return "var(--soft)" if colour == GREY else colour


def _dashes(line: Any) -> list[float]:
    """Convert Matplotlib's lengths, in widths of the line, to pixels."""
    return [1.0, 0.0] if line == "-" else [2.0 * length for length in line[1]]


def _by_method(looks: Looks, legend: bool = True) -> dict[str, Any]:
    """Return the encodings of a method's colour and dashes."""
    colours = alt.Scale(domain=list(looks), range=[colour for colour, _ in looks.values()])
    dashes = alt.Scale(domain=list(looks), range=[dash for _, dash in looks.values()])
    shown = alt.Legend(title=None) if legend else None
    return {
        "color": alt.Color("method:N", scale=colours, legend=shown),
        "strokeDash": alt.StrokeDash("method:N", scale=dashes, legend=shown),
    }


def _percent(field: str, title: str, **scale: Any) -> dict[str, Any]:
    return {
        "shorthand": f"{field}:Q",
        "title": title,
        "axis": alt.Axis(labelExpr=PERCENT),
        "scale": alt.Scale(**scale),
    }


def _values(rows: pd.DataFrame) -> alt.Data:
    return alt.Data(values=rows.astype(object).where(rows.notna(), None).to_dict("records"))


def main_chart(
    explored: Sequence[Mapping[str, Any]], budgets: Sequence[float], looks: Looks, network: str
) -> Chart:
    """Return accuracy within a budget against the budget, with the slider's position.

    Parameters of the chart: `at`, the slider's budget; `shown`, the names of the methods that are drawn; `bottom` and
    `top`, the ends of the axis of accuracy.

    Args:
        explored: from `ztw.reporting.explorer.explored`; methods without a look are static networks.
        network: the backbone in words.
    """
    rows, statics = pd.DataFrame(_lines(explored, budgets, looks)), _statics(explored, looks)
    at, shown = alt.param(name="at", value=0.5), alt.param(name="shown", value=list(looks))
    ends = [alt.param(name="bottom", value=0.0), alt.param(name="top", value=1.0)]
    x = alt.X(**_percent("budget", f"budget (share of {network}'s MACs)", domain=[0, max(budgets)]))
    y = alt.Y(
        **_percent("accuracy", "test accuracy", domain=[alt.ExprRef(end.name) for end in ends], zero=False)
    )
    lines = alt.Chart(_values(rows)).transform_filter("indexof(shown, datum.method) >= 0")
    look = _by_method(looks, legend=False)
    band = lines.mark_area(opacity=0.15).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), look["color"])
    line = lines.mark_line(strokeWidth=2.2).encode(
        x,
        y,
        **look,
        tooltip=["method:N", alt.Tooltip("budget:Q", format=".0%"), alt.Tooltip("accuracy:Q", format=".1%")],
    )
    here = lines.transform_filter("abs(datum.budget - at) < 1e-6")
    dots = here.mark_point(filled=True, size=80, opacity=1).encode(x, y, look["color"])
    rule = alt.Chart(alt.Data(values=[{}])).transform_calculate(budget="at").mark_rule(style=INK, opacity=0.5)
    layers = [band, line, rule.encode(x), dots, *(_diamonds(statics, x, y) if statics else [])]
    return _sized(alt.layer(*layers).add_params(at, shown, *ends), HEIGHT)


def _lines(
    explored: Sequence[Mapping[str, Any]], budgets: Sequence[float], looks: Looks
) -> list[dict[str, Any]]:
    return [
        {
            "method": one["name"],
            "budget": budget,
            "accuracy": accuracy,
            "low": accuracy - (std or 0),
            "high": accuracy + (std or 0),
        }
        for one in explored
        if one["name"] in looks
        for budget, accuracy, std in zip(budgets, one["accuracy"], one["std"], strict=True)
        if accuracy is not None
    ]


def _statics(explored: Sequence[Mapping[str, Any]], looks: Looks) -> list[dict[str, Any]]:
    """Return cost and accuracy of the static networks."""
    return [
        {"method": one["name"], "budget": one["relative_cost"][-1], "accuracy": one["accuracy"][-1]}
        for one in explored
        if one["name"] not in looks and one["accuracy"][-1] is not None
    ]


def _diamonds(points: Sequence[Mapping[str, Any]], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    base = alt.Chart(alt.Data(values=points)).encode(x, y)
    tooltip = [
        "method:N",
        alt.Tooltip("budget:Q", format=".0%", title="cost"),
        alt.Tooltip("accuracy:Q", format=".1%"),
    ]
    marks = base.mark_point(shape="diamond", filled=True, size=70, opacity=1, style=INK).encode(
        tooltip=tooltip
    )
    return [marks, base.mark_text(dy=-11, fontSize=11, style=NAME).encode(text="method:N")]


def exit_chart(shares: Sequence[float]) -> Chart:
    """Return the share of samples that leave at each exit.

    The page sets the data set `shares` (exit, share) and the parameter `top`, the end of the axis.

    Args:
        shares: what the chart shows until then.
    """
    values = [{"exit": exit, "share": share} for exit, share in enumerate(shares, 1)]
    top = alt.param(name="top", value=1.0)
    bars = alt.Chart(alt.InlineData(values=values, name="shares")).mark_bar(color=BARS)
    x = alt.X("exit:O", title="exit", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y(**_percent("share", "samples that leave here", domainMin=0, domainMax=top), stack=None)
    tooltip = ["exit:O", alt.Tooltip("share:Q", format=".1%")]
    return _sized(bars.encode(x, y, tooltip=tooltip).add_params(top), SMALL)


def curve_chart(curves: pd.DataFrame, looks: Looks, network: str) -> Chart:
    """Return accuracy against the realised cost of the test samples; columns method, cost, accuracy."""
    x = alt.X(**_percent("cost", f"mean cost (share of {network}'s MACs)"))
    y = alt.Y(**_percent("accuracy", "test accuracy", zero=False))
    return _selectable(alt.Chart(_values(curves)).mark_line(strokeWidth=2), HEIGHT, x, y, looks)


def by_exit_chart(rows: pd.DataFrame, looks: Looks, title: str) -> Chart:
    """Return a metric of each exit if all samples left there; columns method, exit, value."""
    x = alt.X(
        "exit:Q",
        title="exit",
        axis=alt.Axis(tickMinStep=1, format="d"),
        scale=alt.Scale(zero=False, nice=False),
    )
    y = alt.Y(**_percent("value", title, zero=False))
    return _selectable(alt.Chart(_values(rows)).mark_line(point=True), SMALL, x, y, looks)


def time_chart(times: pd.DataFrame, looks: Looks, batch: str) -> Chart:
    """Return accuracy against the mean time of a sample; columns method, budget, time (ms), accuracy."""
    x = alt.X("time:Q", title=f"mean time of a sample (ms), batch size {batch}", scale=alt.Scale(zero=True))
    y = alt.Y(**_percent("accuracy", "test accuracy", zero=False))
    single = alt.datum.budget == ""
    chart = alt.Chart(_values(times))
    lines = chart.transform_filter(~single).mark_line(point=True)
    alone = chart.transform_filter(single).encode(x, y)
    marks = alone.mark_point(shape="diamond", filled=True, size=70, opacity=1, style=INK)
    names = alone.mark_text(dy=-11, fontSize=11, style=NAME).encode(text="method:N")
    tooltip = ["method:N", alt.Tooltip("time:Q", format=".2f"), alt.Tooltip("accuracy:Q", format=".1%")]
    return _sized(alt.layer(_lines_of(lines, x, y, looks), marks.encode(tooltip=tooltip), names), HEIGHT)


def frontier_chart(frontier: pd.DataFrame, unit: str) -> Chart:
    """Return the accuracy of the best method of each kind against the budget, in one unit of cost."""
    rows = frontier.loc[frontier["unit"].eq(unit), ["kind", "method", "budget", "accuracy"]]
    kinds = [kind for kind in KIND_COLOURS if rows["kind"].eq(kind).any()]
    colours = alt.Scale(domain=kinds, range=[KIND_COLOURS[kind] for kind in kinds])
    base = alt.Chart(_values(rows)).encode(
        alt.X(**_percent("budget", "budget", nice=False, padding=16)),
        alt.Y(**_percent("accuracy", "test accuracy", zero=False)),
        alt.Color("kind:N", scale=colours, legend=alt.Legend(title=None)),
        tooltip=["kind:N", "method:N", alt.Tooltip("accuracy:Q", format=".1%")],
    )
    return _sized(base.mark_line(point=True), SMALL)


def _selectable(chart: alt.Chart, height: int, x: alt.X, y: alt.Y, looks: Looks) -> Chart:
    return _sized(_lines_of(chart, x, y, looks), height)


def _lines_of(chart: alt.Chart, x: alt.X, y: alt.Y, looks: Looks) -> alt.Chart:
    """Return a line per method; a click on the legend shows one method alone."""
    chosen = alt.selection_point(fields=["method"], bind="legend")
    opacity = alt.condition(chosen, alt.value(1.0), alt.value(0.12))
    return chart.encode(x, y, **_by_method(looks), opacity=opacity, tooltip=["method:N"]).add_params(chosen)


def _sized(chart: Any, height: int) -> Any:
    return chart.properties(width="container", height=height)


def drawn(chart: Chart, text: str, title: str = "") -> dict[str, str]:
    """Return a chart for the page; text: what a screen reader says; title: above the chart."""
    spec = chart.to_dict()
    spec.pop("config", None)  # Altair's theme; the page has its own
    return {"text": text, "title": title, "spec": json_text(spec)}


def json_text(value: Any) -> str:
    """Return JSON that can stand in a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
