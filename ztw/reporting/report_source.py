"""Read the files of a study for its report, of a finished run or a published one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ztw.catalogue.titles import DATASET_TITLES, title_of
from ztw.files import check_seal, read_json
from ztw.reporting import charts
from ztw.reporting.finding import finding
from ztw.reporting.frontier_table import read_frontier
from ztw.reporting.latency_table import read_latency
from ztw.reporting.readable import INFEASIBLE, read_rows
from ztw.reporting.results import Metrics, read_curves, read_metrics, results_of
from ztw.reporting.tables import read_differences
from ztw.study.config import check_study, read_config
from ztw.study.layout import Cell, Layout, figure_title
from ztw.study.provenance import code_version
from ztw.study.settings import Study

# The shipped studies, if this is a checkout
CONFIG = Path(__file__).parents[2] / "config"
# A heading of a study's file: "# Question: ...", continued on lines that start with "#   "
QUESTION = re.compile(r"^# Question:(.*\n(?:#   .*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class CellSource:
    """The results of one data set and architecture, of all methods and seeds.

    Args:
        accuracies: rows of the accuracy table of the study's first protocol.
        differences: the table of differences, of all protocols.
        frontier: None if the study has no held-out protocol; times: None if nothing was timed.
        gallery: example images, None if there are none.
    """

    study: Study
    dataset: str
    arch: str
    methods: list[str]
    curves: pd.DataFrame
    metrics: Metrics
    accuracies: pd.DataFrame
    differences: pd.DataFrame
    frontier: pd.DataFrame | None
    times: pd.DataFrame | None
    gallery: dict[str, Any] | None

    @property
    def protocol(self) -> str:
        """The study's first protocol, which the report shows."""
        return self.study.evaluation.protocols[0]

    @property
    def title(self) -> str:
        """Architecture and data set in words."""
        return title_of(self.dataset, self.arch)

    @property
    def network(self) -> str:
        """The architecture in words."""
        return self.title.removesuffix(f" on {DATASET_TITLES.get(self.dataset, self.dataset)}")

    @property
    def looks(self) -> charts.Looks:
        """Colour and dashes of the methods with exits that have results, in the order of the study."""
        return {
            name: look for name, look in charts.looks(self.study.families).items() if name in self.methods
        }

    def finding(self) -> str:
        """Return what the main figure shows in a sentence, "" if nothing can be compared."""
        kinds = {name: kind for name, kind in self.study.kinds.items() if not self.study.methods[name].int8}
        headline, budgets = self.study.headline, self.study.evaluation.budgets
        return finding(self.curves, self.metrics, self.differences, headline, kinds, budgets)


@dataclass(frozen=True)
class ReportSource:
    """The files of a study's folder."""

    layout: Layout

    @cached_property
    def config(self) -> str:
        """The text of the study's file, without a password."""
        return self.layout.config.read_text(encoding="utf-8")

    @cached_property
    def study(self) -> Study:
        """The checked study; raises ZtwError."""
        return check_study(read_config(self.layout.config))

    @property
    def question(self) -> str:
        """The question in the heading of the study's file or of the shipped study of this name, else the name."""
        name = self.layout.folder.name
        shipped = [path.read_text(encoding="utf-8") for path in sorted(CONFIG.glob(f"**/{name}.yaml"))]
        found = next(filter(None, map(QUESTION.search, [self.config, *shipped])), None)
        if found is None:
            return name
        text = " ".join(found[1].replace("\n#", " ").split())
        return re.sub(r"\?.*", "?", text[:1].upper() + text[1:])

    def cells(self) -> list[CellSource]:
        """Read the results of every data set and architecture that has any."""
        return [self._cell(*names) for names in self.study.cells if self._results(*names)]

    def _results(self, dataset: str, arch: str) -> list[tuple[Cell, str]]:
        cells = [Cell(dataset, arch, seed) for seed in self.study.seeds]
        return results_of(self.layout, cells, tuple(self.study.methods), partial=True)

    def _cell(self, dataset: str, arch: str) -> CellSource:
        layout, found = self.layout, self._results(dataset, arch)
        protocol, gallery = self.study.evaluation.protocols[0], layout.gallery(figure_title(dataset, arch))
        timed = layout.table("latency").is_file()
        times = read_latency(layout.table("latency"), dataset, arch) if timed else None
        return CellSource(
            self.study,
            dataset,
            arch,
            methods=[name for name in self.study.methods if name in {method for _, method in found}],
            curves=read_curves(layout.curves(*of) for of in found),
            metrics=_of(read_metrics(layout.table("metrics")), dataset, arch),
            accuracies=_of(self._accuracies(protocol), dataset, arch),
            differences=_of(read_differences(layout.table("differences")), dataset, arch),
            frontier=self._frontier(dataset, arch),
            times=None if times is None or times.empty else times,
            gallery=read_json(gallery) if gallery.is_file() else None,
        )

    def _accuracies(self, protocol: str) -> pd.DataFrame:
        path = self.layout.table("accuracy_at_budget")
        check_seal(path)
        rows = pd.read_csv(
            path, dtype={"budget": str, "method": str}, keep_default_na=False, na_values=_NUMBERS
        )
        return rows[rows["protocol"].eq(protocol)].replace({"budget": {"": INFEASIBLE}})

    def _frontier(self, dataset: str, arch: str) -> pd.DataFrame | None:
        path = self.layout.table("frontier")
        return _of(read_frontier(path), dataset, arch) if path.is_file() else None

    def provenance(self) -> list[tuple[str, str]]:
        """Return (name, value) of what the results come from."""
        published = [read_json(file) for file in sorted(self.layout.folder.rglob("seed*/provenance.json"))]
        results = [
            read_json(self.layout.metrics(*of)) for names in self.study.cells for of in self._results(*names)
        ]
        versions = [f"{name} {version}" for result in results for name, version in result["versions"].items()]
        devices = read_rows(self.layout.table("devices"))
        kinds = [f"{row['device']}, {row['precision']}, {threads(row['threads'])}" for row in devices]
        written = date.fromtimestamp(self.layout.table("metrics").stat().st_mtime).isoformat()
        return [
            ("commit", _each([one["published_at"] for one in published] or [code_version()])),
            ("date", _each([one["date"] for one in published] or [written])),
            ("machine", _each([one["machine"] for one in published if one["machine"]] or kinds)),
            ("computed on", _each(kinds)),
            ("versions", _each(sorted(versions))),
            ("seeds", ", ".join(map(str, self.study.seeds))),
        ]

    def durations(self) -> dict[str, float]:
        """Return rule -> seconds of its jobs, of all published cells or of the run; "all": the sum."""
        table = self.layout.table("pipeline")
        if table.is_file():
            return {row["rule"]: float(row["seconds"]) for row in read_rows(table)}
        found: dict[str, float] = {}
        for file in sorted(self.layout.folder.rglob("seed*/provenance.json")):
            for rule, seconds in read_json(file)["seconds"].items():
                found[rule] = found.get(rule, 0) + seconds
        return found


_NUMBERS = {name: [""] for name in ("mean", "std", "n", "relative_cost")}


def _of(rows: pd.DataFrame, dataset: str, arch: str) -> pd.DataFrame:
    return rows[rows["dataset"].eq(dataset) & rows["arch"].eq(arch)]


def threads(count: int | str) -> str:
    """Format a number of threads."""
    return f"{count} thread{'s' * (str(count) != '1')}"


def _each(texts: list[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
