"""Recompute the accuracies and the frontier of a published study from its published logits, without ztw.

usage: python bench/recompute_frontier.py results/reference/<study> [--tolerance SHARE]

For each cell, the script reads `predictions/` (logits and MACs of single exits), `ensembles/` (fitted weights) and
`metrics/` (the published numbers). It prints two tables of published and recomputed values:

- the test accuracy of each method and seed at each budget, by the protocol `held-out`
- the rows of `tables/frontier.csv` in MACs whose method was recomputed for all seeds: of each kind of method, the point
  with the highest held-out accuracy among all points within the budget; and the differences of early exits to the best
  of the other kinds

Methods with other rules or thresholds, in int8 or without published logits are skipped by name. The MACs of a network
cut after an exit (rule `fixed_exit`) are the published ones.

The exit status is 1 if an accuracy differs by more than the tolerance (default 0.0005), a difference by more than twice
the tolerance, the cost of an exit by more than a millionth, or if nothing could be recomputed.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from from_logits import AtBudget, Skipped, Study, at_budgets, published_metrics, text

TOLERANCE = 5e-4
NAN = float("nan")


class Point(NamedTuple):
    """An operating point of a method, means over its seeds; cost is a share of the backbone's."""

    method: str
    kind: str
    cost: float
    held_out: float
    accuracy: float


class Report:
    """Prints published and recomputed values, and counts those that differ too much."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance, self.rows, self.failures = tolerance, 0, 0

    def head(self, title: str) -> None:
        """Print the head of a table."""
        print(f"\n{title}\n{'budget, kind, method':<60}{'published':>11}{'recomputed':>12}{'difference':>12}")

    def compare(self, name: str, published: float, recomputed: float, allowed: float) -> None:
        """Print a row; NaN differs from every number."""
        agrees = abs(published - recomputed) <= allowed + 1e-9
        self.rows += 1
        self.failures += not agrees
        values = f"{published:11.6f}{recomputed:12.6f}{recomputed - published:+12.6f}"
        print(f"{name:<60}{values}{'' if agrees else '  DIFFERS'}")

    def differs(self, line: str) -> None:
        """Print what differs other than by an accuracy."""
        self.failures += 1
        print(f"{line}  DIFFERS")


def recompute_method(study: Study, cell: Path, method: str, report: Report) -> dict[str, AtBudget]:
    """Compare a method's accuracies in one cell with the published ones; return its points by budget."""
    exits, published = study.exits(cell, method), published_metrics(cell, method)
    base = published["", "", "backbone_macs", 0] or NAN
    for exit, cost in enumerate(exits.cost, 1):
        share = published["", "", "relative_cost", exit] or NAN
        if not abs(cost / base - share) <= 1e-6 * share:
            report.differs(
                f"{method}: cost of exit {exit}: {share} of the backbone, recomputed {cost / base}"
            )
    rule = study.methods[method].get("rule", "max_softmax")
    found = at_budgets(exits, base, rule, study.evaluation.get("points", 1000), study.budgets)
    for budget in map(text, study.budgets):
        was = published["held-out", budget, "accuracy", 0]
        if was is None and budget not in found:  # no threshold is cheap enough
            continue
        now = found[budget].accuracy if budget in found else NAN
        name = f"{budget:<7}{study.kind(method):<21}{method}"
        report.compare(name, NAN if was is None else was, now, report.tolerance)
    return found


def recompute_cells(study: Study, report: Report) -> dict[Path, list[Point]]:
    """Compare every method of every cell; return data set and architecture -> points of methods with all seeds."""
    seeds: dict[tuple[Path, str], list[dict[str, AtBudget] | None]] = defaultdict(list)
    for cell in study.cells():
        report.head(str(cell.relative_to(study.folder)))
        skipped: dict[str, list[str]] = defaultdict(list)
        for method in study.methods:
            if not (cell / "metrics" / f"{method}.json").is_file():
                continue
            try:
                seeds[cell.parent, method].append(recompute_method(study, cell, method, report))
            except Skipped as why:
                seeds[cell.parent, method].append(None)
                skipped[str(why)].append(method)
        for why_not, methods in skipped.items():
            print(f"skipped ({why_not}): {', '.join(methods)}")
    points: dict[Path, list[Point]] = defaultdict(list)
    for (home, method), of_seeds in seeds.items():
        points[home] += mean_points(method, study.kind(method), of_seeds)
    return points


def mean_points(method: str, kind: str, of_seeds: list[dict[str, AtBudget] | None]) -> Iterator[Point]:
    """Yield a method's points at the budgets that all seeds can meet; none if a seed was skipped."""
    known = [one for one in of_seeds if one is not None]
    if len(known) < len(of_seeds):
        return
    for budget in known[0]:
        if all(budget in one for one in known):
            yield Point(method, kind, *np.mean([one[budget] for one in known], axis=0).tolist())


def recompute_frontier(study: Study, points: dict[Path, list[Point]], report: Report) -> None:
    """Compare the rows of the frontier in MACs whose method was recomputed for all seeds."""
    with (study.folder / "tables/frontier.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["unit"] == "MACs"]
    report.head("frontier")
    accuracies: dict[tuple[str, ...], float] = {}
    for row in rows:
        known = points[study.folder / row["dataset"] / row["arch"]]
        if all(point.method != row["method"] for point in known):
            continue
        point = best_point(row, known, report.tolerance)
        if isinstance(point, str):
            report.differs(f"{name_of(row)}: best is {point}")
            continue
        report.compare(name_of(row), float(row["accuracy"]), point.accuracy, report.tolerance)
        accuracies[key_of(row, "method")] = point.accuracy
    print(
        f"skipped (not recomputed for all seeds): {sum(key_of(r, 'method') not in accuracies for r in rows)} rows"
    )
    for row in rows:
        own, rival = key_of(row, "method"), key_of(row, "rival")
        if own in accuracies and rival in accuracies:
            difference, name = accuracies[own] - accuracies[rival], f"{name_of(row)} - {row['rival']}"
            report.compare(name, float(row["difference"]), difference, 2 * report.tolerance)


def key_of(row: dict[str, str], column: str) -> tuple[str, ...]:
    return row["dataset"], row["arch"], row["budget"], row[column]


def name_of(row: dict[str, str]) -> str:
    return f"{text(float(row['budget'])):<7}{row['kind']:<21}{row['method']}"


def best_point(row: dict[str, str], points: list[Point], tolerance: float) -> Point | str:
    """Return the best point of a row's kind and budget if it is of the row's method, else the best method's name.

    Points whose held-out accuracies differ by less than the tolerance are equally good, because published logits are
    rounded. Of several, the one whose accuracy is nearest to the published one is returned.
    """
    budget = float(row["budget"]) * (1 + 1e-6)
    within = [point for point in points if point.kind == row["kind"] and point.cost <= budget]
    if not within:
        return "no method, because none is cheap enough"
    best = max(within, key=lambda point: (round(point.held_out, 9), -point.cost))
    good = [point for point in within if point.held_out >= best.held_out - tolerance]
    same = [point for point in good if point.method == row["method"]]
    return min(same, key=lambda point: abs(point.accuracy - float(row["accuracy"])), default=best.method)


def main() -> int:
    """Recompute a study; return the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, metavar="SHARE")
    given = parser.parse_args()
    if not (given.folder / "tables/frontier.csv").is_file():
        print(
            f"error: {given.folder}: no published study with a frontier (tables/frontier.csv)",
            file=sys.stderr,
        )
        return 1
    study, report = Study(given.folder), Report(given.tolerance)
    recompute_frontier(study, recompute_cells(study, report), report)
    if not report.rows:
        print(f"error: {given.folder}: has no logits to recompute; publish them by --logits", file=sys.stderr)
        return 1
    print(f"\n{report.rows} values recomputed, {report.failures} differ")
    return int(report.failures > 0)


if __name__ == "__main__":
    sys.exit(main())
