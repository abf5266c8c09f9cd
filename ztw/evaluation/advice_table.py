"""Print an advice as a table of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ztw.evaluation.advice_option import MODEL, Option

WIDTH = 100
NAME = 28  # longest name that is shown in one piece
INT8 = ", int8"
HEADER = ("option", "accuracy", "loss, points (95 %)", "MACs", "ms", "speed-up (range)", "runtime")
UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def table(options: Sequence[Option], best: Option, about: str, sentence: str) -> str:
    """Return the table, the reasons of options that were not measured, and the sentence."""
    rows = [HEADER, *(_row(option, option is best) for option in options if not option.reason)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    space = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    lines = [
        space.join(
            cell.ljust(width) if column in (0, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    missing = [
        textwrap.fill(f"{one.name}: not measured: {one.reason}", WIDTH, subsequent_indent="  ")
        for one in options
        if one.reason
    ]
    return "\n".join(
        [about, "", *lines, *([""] if missing else []), *missing, "", *textwrap.wrap(sentence, WIDTH)]
    )


def _row(option: Option, best: bool) -> tuple[str, ...]:
    loss, (low, high) = option.loss, option.speed_range
    as_it_is = option.kind == MODEL and not option.int8
    return (
        ("* " if best else "  ") + _name(option),
        f"{100 * option.accuracy:.1f} %",
        "" if loss is None or as_it_is else _interval(loss.difference, loss.low, loss.high),
        _with_unit(option.macs),
        f"{option.ms:.3g}" if option.ms < 100 else f"{option.ms:.0f}",
        _ratio(option.speed_up) + ("" if low == high else f" ({_ratio(low)}-{_ratio(high)})"),
        option.runtime,
    )


def _name(option: Option) -> str:
    """Return a name of at most NAME characters, which says whether it is int8."""
    name = option.name.removesuffix(INT8)
    end = INT8 if name != option.name else ""
    return textwrap.shorten(name, NAME - len(end), placeholder=" ...") + end


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})".replace("-0.0 ", "0.0 ")


def _with_unit(number: float) -> str:
    for unit, name in UNITS:
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.3g}"
