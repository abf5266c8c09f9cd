"""Tables from the methods' metrics: long csv, wide Markdown and LaTeX, a terminal view."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ztw.errors import ZtwError
from ztw.files import atomic, write_text

COLUMNS = ("dataset", "arch", "method", "budget", "mean", "std", "n", "relative_cost", "protocol")
INFEASIBLE = "-"

# One result: {"dataset", "arch", "seed", "method", "metrics": {name: value}}
Result = Mapping[str, Any]
Row = dict[str, Any]
# (data set, architecture, protocol, budget, method, method) of the pairs that differ by no more than noise
Noise = Collection[tuple[str, ...]]


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), NaN for fewer than one and two values."""
    if not values:
        return math.nan, math.nan
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def accuracy_table(
    results: Iterable[Result],
    methods: Sequence[str],
    budgets: Sequence[float | str],
    protocols: Sequence[str],
) -> list[Row]:
    """Accuracy at every budget: one row per data set, architecture, protocol, method and budget.

    mean, std (n - 1) and relative_cost (of the test samples, mean) are over the n seeds for which
    the budget is feasible; NaN where it is for none. Methods, budgets and protocols keep their order.
    Raises ZtwError when a method lacks a result.
    """
    cells: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for result in results:
        cell = cells.setdefault((result["dataset"], result["arch"]), {})
        cell.setdefault(result["method"], []).append(result)
    rows = []
    for (dataset, arch), of_method in cells.items():
        for protocol in protocols:
            for method in methods:
                if method not in of_method:
                    raise ZtwError(f"table: no result of {method} on {dataset}/{arch}")
                for budget in budgets:
                    rows.append(
                        {"dataset": dataset, "arch": arch, "method": method, "budget": budget}
                        | _cell_values(of_method[method], protocol, budget)
                        | {"protocol": protocol}
                    )
    return rows


def _cell_values(results: Sequence[Result], protocol: str, budget: float | str) -> Row:
    accuracies, costs = [], []
    for result in results:
        try:
            accuracy = result["metrics"][f"{protocol}/accuracy_at_{budget}"]
            cost = result["metrics"][f"{protocol}/relative_cost_at_{budget}"]
        except KeyError as error:
            raise ZtwError(
                f"table: {result['method']} on {result['dataset']}/{result['arch']}/seed{result['seed']}"
                f" has no metric {error}"
            ) from error
        if accuracy is not None and not math.isnan(accuracy):
            accuracies.append(accuracy)
            costs.append(cost)
    mean, std = mean_std(accuracies)
    return {"mean": mean, "std": std, "n": len(accuracies), "relative_cost": mean_std(costs)[0]}


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return INFEASIBLE if math.isnan(value) else f"{value:.6f}"


def write_csv(rows: Sequence[Row], path: Path | str, columns: Sequence[str] = COLUMNS) -> None:
    """The long table, "-" where there is no value."""
    with atomic(path) as scratch, scratch.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([row[c] if c == "budget" else _number(row[c]) for c in columns])


def read_csv(path: Path | str) -> list[Row]:
    """Rows as `write_csv` wrote them, "-" as NaN; budgets stay text."""
    with Path(path).open(newline="", encoding="utf-8") as stream:
        rows: list[Row] = list(csv.DictReader(stream))
    for row in rows:
        for column in ("mean", "std", "relative_cost"):
            row[column] = math.nan if row[column] == INFEASIBLE else float(row[column])
        row["n"] = int(row["n"])
    return rows


def budget_name(budget: float | str) -> str:
    """0.25 as "25 %", "max" as "Max"."""
    return "Max" if budget == "max" else f"{100 * float(budget):g} %"


def percent(share: float) -> float:
    """A share as percent with one decimal, halves up, NaN as it is.

    Of the six decimals that the CSV keeps, so that a table made from it says the same as one made before.
    """
    return share if math.isnan(share) else math.floor(1000 * round(share, 6) + 0.5 + 1e-9) / 10


def accuracy_name(row: Row, seeds: int, plus_minus: str = "±") -> str:
    """ "91.2 ± 0.3" in percent, "91.2" for one seed, "-" where infeasible.

    Feasible for fewer than `seeds` seeds, it says for how many: "91.2 (n=1)".
    """
    if math.isnan(row["mean"]):
        return INFEASIBLE
    spread = "" if math.isnan(row["std"]) else f" {plus_minus} {percent(row['std']):.1f}"
    fewer = f" (n={row['n']})" if row["n"] < seeds else ""
    return f"{percent(row['mean']):.1f}{spread}{fewer}"


def seed_count(methods: Sequence[tuple[str, list[Row]]]) -> int:
    """Seeds of a block: the largest n of its rows."""
    return max(row["n"] for _, rows in methods for row in rows)


Block = tuple[tuple[str, str, str], list[tuple[str, list[Row]]]]


def wide_blocks(rows: Sequence[Row]) -> list[Block]:
    """Group long rows into blocks ((dataset, arch, protocol), [(method, its rows, one a budget)])."""
    blocks: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for row in rows:
        block = blocks.setdefault((row["dataset"], row["arch"], row["protocol"]), {})
        block.setdefault(row["method"], []).append(row)
    return [(key, list(methods.items())) for key, methods in blocks.items()]


def block_title(key: tuple[str, str, str], seeds: int) -> str:
    """A caption: data set, architecture, protocol, seeds, cost unit."""
    dataset, arch, protocol = key
    split = "validation" if protocol == "held-out" else "test"
    unit = "operations by the published counter" if protocol == "published" else "MACs"
    return (
        f"{dataset}, {arch}: test accuracy (%) within a share of the backbone's {unit}; thresholds chosen"
        f" on the {split} split (protocol {protocol}); mean ± std, n = {seeds}"
    )


SAME = "≈"


def noise_note(noise: Noise) -> str:
    """What the caption adds where differences were compared."""
    return f"; {SAME}: within noise of the best (95 % paired bootstrap over the test images)" if noise else ""


def _leaders(methods: list[tuple[str, list[Row]]]) -> list[tuple[str, float]]:
    """(best method, its mean as printed, so that ties are all marked) of every budget."""
    leaders = []
    for column in zip(*(rows for _, rows in methods), strict=True):
        feasible = [row for row in column if not math.isnan(row["mean"])]
        best = max(feasible, key=lambda row: row["mean"], default=None)
        leaders.append((best["method"], percent(best["mean"])) if best else ("", math.nan))
    return leaders


def _mark(row: Row, leader: tuple[str, float], noise: Noise) -> str:
    """How a cell stands to the best: "best", "same" (within noise), or ""."""
    if percent(row["mean"]) == leader[1]:
        return "best"
    where = (row["dataset"], row["arch"], row["protocol"], str(row["budget"]))
    return "same" if (*where, row["method"], leader[0]) in noise else ""


def to_markdown(rows: Sequence[Row], noise: Noise = frozenset()) -> str:
    """One Markdown table a block; the best of a budget is bold, what is within its noise is marked."""
    look = {"best": "**{}**", "same": f"{{}} {SAME}", "": "{}"}
    parts = []
    for key, methods in wide_blocks(rows):
        leaders = _leaders(methods)
        seeds = seed_count(methods)
        parts.append(f"**{block_title(key, seeds)}{noise_note(noise)}**\n")
        parts.append("| method | " + " | ".join(budget_name(row["budget"]) for row in methods[0][1]) + " |")
        parts.append("|---|" + "---:|" * len(leaders))
        for method, group in methods:
            texts = [
                look[_mark(row, leader, noise)].format(accuracy_name(row, seeds))
                for row, leader in zip(group, leaders, strict=True)
            ]
            parts.append(f"| {method} | " + " | ".join(texts) + " |")
        parts.append("")
    return "\n".join(parts)


def _tex(text: str) -> str:
    for char in "&%_#":
        text = text.replace(char, f"\\{char}")
    return text.replace("±", "$\\pm$").replace(SAME, "$\\approx$")


def to_latex(rows: Sequence[Row], noise: Noise = frozenset()) -> str:
    """One LaTeX table a block; needs the package booktabs."""
    look = {"best": "\\textbf{{{}}}", "same": "{} $\\approx$", "": "{}"}
    parts = ["% needs \\usepackage{booktabs}"]
    for key, methods in wide_blocks(rows):
        leaders = _leaders(methods)
        seeds = seed_count(methods)
        title = _tex(block_title(key, seeds) + noise_note(noise))
        parts += ["\\begin{table}", "\\centering", f"\\caption{{{title}}}"]
        parts += [f"\\begin{{tabular}}{{l{'r' * len(leaders)}}}", "\\toprule"]
        heads = [_tex(budget_name(row["budget"])) for row in methods[0][1]]
        parts += [" & ".join(["method", *heads]) + " \\\\", "\\midrule"]
        for method, group in methods:
            texts = [
                look[_mark(row, leader, noise)].format(accuracy_name(row, seeds, "$\\pm$"))
                for row, leader in zip(group, leaders, strict=True)
            ]
            parts.append(" & ".join([_tex(method), *texts]) + " \\\\")
        parts += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(parts)


def write_tables(rows: Sequence[Row], noise: Noise, csv_path: str, md_path: str, tex_path: str) -> None:
    """Write the table in its three forms; noise: see `ztw.differences.read_noise`."""
    write_csv(rows, csv_path)
    write_text(md_path, to_markdown(rows, noise))
    write_text(tex_path, to_latex(rows, noise))


PER_EXIT = ("dataset", "arch", "method", "exit", "metric", "mean", "std", "n")
ALLOWED_LOSS = (
    "dataset",
    "arch",
    "method",
    "protocol",
    "allowed_loss",
    "accuracy_loss",
    "std",
    "largest",
    "relative_cost",
    "n",
)


def _by_name(results: Iterable[Result]) -> dict[tuple[str, str, str, str], list[float]]:
    """(data set, architecture, method, metric) -> its values over the seeds."""
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for result in results:
        for name, value in result["metrics"].items():
            key = (result["dataset"], result["arch"], result["method"], name)
            values.setdefault(key, []).append(value)
    return values


def per_exit_table(results: Iterable[Result]) -> list[Row]:
    """Every metric that each exit has, if all samples left there: mean and std over the n seeds."""
    rows = []
    for (dataset, arch, method, name), values in _by_name(results).items():
        if (match := re.fullmatch(r"exit_(\d+)/(\w+)", name)) is None:
            continue
        known = [value for value in values if not math.isnan(value)]
        mean, std = mean_std(known)
        named: Row = {"dataset": dataset, "arch": arch, "method": method, "exit": int(match[1])}
        rows.append({**named, "metric": match[2], "mean": mean, "std": std, "n": len(known)})
    return rows


def allowed_loss_table(results: Iterable[Result]) -> list[Row]:
    """For methods whose thresholds follow an allowed loss of accuracy: what they lost on the test split.

    accuracy_loss, std: of the last exit's accuracy less the method's, over n seeds; largest: of any seed.
    """
    values = _by_name(results)
    rows = []
    for (dataset, arch, method, name), losses in values.items():
        if (match := re.fullmatch(r"([\w-]+)/accuracy_loss_allowed_(.+)", name)) is None:
            continue
        costs = values[dataset, arch, method, f"{match[1]}/relative_cost_allowed_{match[2]}"]
        mean, std = mean_std(losses)
        named: Row = {"dataset": dataset, "arch": arch, "method": method, "protocol": match[1]}
        found = {"allowed_loss": float(match[2]), "accuracy_loss": mean, "std": std, "largest": max(losses)}
        rows.append({**named, **found, "relative_cost": mean_std(costs)[0], "n": len(losses)})
    return rows
