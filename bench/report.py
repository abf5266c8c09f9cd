"""Convert pytest-benchmark's JSON to a readable report: medians, and ratios to the reference of each group."""

from __future__ import annotations

import json
import platform
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ztw.device import bf16_pays, pick_device
from ztw.reporting.labels import Names
from ztw.reporting.style import COLOURS, MARKERS, new_panels
from ztw.study.provenance import code_version

SKIPPED = ("what", "reference", "scale", "arch", "batch", "grows", "factor")


def machine() -> list[str]:
    """Return lines about the machine and the software."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    device = pick_device()
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pytest-benchmark"))
    return [
        f"- CPU: {cpu}, {torch.get_num_threads()} threads, bf16 pays: {bf16_pays(torch.device('cpu'))}",
        f"- GPU: {gpu}",
        f"- {versions}, Python {platform.python_version()}, ztw {code_version()}",
    ]


def seconds(value: float) -> str:
    """Format a duration with three digits."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1 or unit == "µs":
            return f"{value * factor:.3g} {unit}"
    raise AssertionError


def table(group: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return a group as a Markdown table: scaled medians, speed relative to the reference, further values."""
    medians = [row["stats"]["median"] * row["extra_info"].get("scale", 1) for row in rows]
    reference = next(
        (median for median, row in zip(medians, rows, strict=True) if row["extra_info"].get("reference")),
        None,
    )
    lines = [f"### {group}", "", "| | median | faster than the reference | |", "|---|---:|---:|---|"]
    for row, median in zip(rows, medians, strict=True):
        facts = {key: value for key, value in row["extra_info"].items() if key not in SKIPPED}
        ratio = f"{reference / median:.2f} x" if reference and not row["extra_info"].get("reference") else ""
        note = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in facts.items()
        )
        lines.append(
            f"| {row['extra_info'].get('what', row['name'])} | {seconds(median)} | {ratio} | {note} |"
        )
    return [*lines, ""]


def plot_growth(rows: list[dict[str, Any]], target: Path) -> None:
    """Plot time against size, both relative to the smallest size. Linear growth is the dotted diagonal."""
    figure, (axes,) = new_panels(1, 4.6, 4.2)
    kinds = dict.fromkeys(row["extra_info"]["grows"] for row in rows)
    for place, kind in enumerate(kinds):
        own = sorted(
            (r["extra_info"]["factor"], r["stats"]["median"])
            for r in rows
            if r["extra_info"]["grows"] == kind
        )
        factors, medians = zip(*own, strict=True)
        times = [median / medians[0] for median in medians]
        axes.plot(factors, times, marker=MARKERS[place], color=COLOURS[place], lw=1.8, label=str(kind))
    largest = max(row["extra_info"]["factor"] for row in rows)
    axes.plot([1, largest], [1, largest], color="0.5", ls=":", label="linear")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set(xlabel="times as many", ylabel="times as long")
    axes.set_title("Time to evaluate a cell of logits", loc="left")
    figure.tight_layout()
    names = Names(axes)
    for line in axes.lines:
        names.beside_line(line, str(line.get_label()), color=line.get_color(), weight="bold", fontsize=9)
    figure.savefig(target, dpi=160, bbox_inches="tight")


def main(target: str, *sources: str) -> None:
    """Write the report of the JSON files `sources`."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for source in sources:
        for row in json.loads(Path(source).read_text())["benchmarks"]:
            groups[row["group"]].append(row)
    lines = ["# Benchmarks", "", *machine(), ""]
    for group, rows in groups.items():
        lines += table(group, rows)
    growing = [row for of_group in groups.values() for row in of_group if "grows" in row["extra_info"]]
    if growing:
        plot_growth(growing, Path(target).with_name("growth.png"))
        lines += ["![time as samples and exits grow](growth.png)", ""]
    Path(target).write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
