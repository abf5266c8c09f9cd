"""Run a study without Snakemake and MLflow: one job after the other in one process, seed by seed.

usage: python workflow/without_snakemake.py CONFIG [--seeds N ...] [--threads N]

For a machine, for example with a GPU, that has ztw's packages (pip install -e .) but not the workflow's. It writes
results/<study> like `make reproduce`: data, networks, logits, metrics and tables. It measures no times, draws no
figures and logs no runs. Afterwards `python workflow/publish.py CONFIG` publishes the finished cells.

Stop it at any time; the same command continues. A job is skipped if its output exists; a training continues from its
checkpoint. Changed settings, inputs or code are not noticed: after a change, delete results/<study>. Processes with
different seeds can run at the same time.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter
from reproduce import check_plugins, clear_environment, cores, ensure_user, read_study, usable_cores

from ztw.device import make_reproducible
from ztw.errors import ZtwError
from ztw.jobs.aggregate import AggregateSettings, aggregate
from ztw.jobs.compare_methods import CompareMethodsSettings, compare_methods
from ztw.jobs.evaluate import evaluate
from ztw.jobs.fit_ensembles import fit_ensembles
from ztw.jobs.job import Job
from ztw.jobs.predict import predict
from ztw.jobs.predict_backbone import predict_backbone
from ztw.jobs.prepare_dataset import prepare_dataset
from ztw.jobs.train_backbone import records_of, train_backbone
from ztw.jobs.train_ics import train_ics
from ztw.jobs.train_network import train_network
from ztw.progress import describe, job_log
from ztw.study import job_settings
from ztw.study.config import study_name
from ztw.study.layout import Cell, Layout, metadata
from ztw.study.provenance import code_digest
from ztw.study.settings import Study


@dataclass(frozen=True)
class Run:
    """A run of a study, which writes its results to `layout`."""

    study: Study
    layout: Layout

    def job(
        self,
        job: Callable[..., None],
        outputs: Iterable[Path],
        inputs: Iterable[Path] = (),
        own: dict[str, Any] | None = None,
        **names: Any,
    ) -> None:
        """Run a job unless its outputs exist; own: settings beside those of the cell; names: the job's arguments."""
        if all(path.exists() for path in outputs):
            return
        rule = job.__name__
        cell: Any = names.get("cell")
        of_cell = job_settings.OF_CELL[rule] if cell else {}
        settings = {name: value(self.study, cell) for name, value in of_cell.items()} | (own or {})
        typed = TypeAdapter(get_type_hints(job)["settings"]).validate_python(settings)
        titles = [name.title if name is cell else name for name in names.values()]
        gc.collect()  # `job_log` excludes all objects from later collections
        with job_log(self.layout.log(rule, *titles), rule, map(str, names.values())) as report:
            params = settings | {"code": code_digest(rule)}
            job(Job(self.layout, report, params, list(inputs)), **names, settings=typed)

    def data(self, dataset: str) -> None:
        """Prepare a data set."""
        for split in ("train", "test"):
            own = {
                "root": self.study.data.root,
                "folder": job_settings.folder(self.study, dataset),
                "stamp": job_settings.image_stamps(self.study, dataset, split),
            }
            record = self.layout.record(dataset, split)
            self.job(prepare_dataset, [record], own=own, dataset=dataset, split=split)

    def cell(self, cell: Cell) -> None:
        """Run all jobs of a cell and of the static networks beside it."""
        study, layout = self.study, self.layout
        statics = [cell.with_arch(network) for network in study.statics]
        for home in (cell, *statics):
            self.backbone(home)
        self.ics(cell)
        splits, static_splits = job_settings.splits(study), job_settings.static_splits(study)
        logits = [layout.predictions(cell, ics, split) for ics in study.ics.sets for split in splits]
        self.job(predict, with_metadata(logits), cell=cell)
        for home in statics:
            logits = [layout.backbone_predictions(home, split) for split in static_splits]
            self.job(predict_backbone, with_metadata(logits), cell=home)
        fitted = [layout.ensemble(cell, *names) for names in job_settings.ensembles(study)]
        self.job(fit_ensembles, with_metadata(fitted), cell=cell)
        kinds = (layout.curves, layout.metrics, layout.correct, layout.network)
        self.job(evaluate, [file(cell, method) for file in kinds for method in study.methods], cell=cell)

    def backbone(self, cell: Cell) -> None:
        """Train a backbone, after its teacher."""
        sections = job_settings.sections(self.study, cell)
        splits = records_of(sections.data, sections.backbone)
        inputs = [self.layout.record(cell.dataset, split) for split in splits]
        if taught := job_settings.distillation(self.study, cell):
            teacher = cell.with_arch(taught["teacher"]["network"])
            self.backbone(teacher)
            inputs.append(self.layout.backbone(teacher))
        self.job(train_backbone, with_metadata([self.layout.backbone(cell)]), inputs, cell=cell)

    def ics(self, cell: Cell) -> None:
        """Train all IC sets of a cell."""
        sections, layout = job_settings.sections(self.study, cell), self.layout
        records = [layout.record(cell.dataset, split) for split in sections.data.training_records]
        inputs = [*records, layout.backbone(cell)]
        frozen = [layout.ics(cell, name) for name in job_settings.frozen_sets(self.study)]
        self.job(train_ics, with_metadata(frozen), inputs, cell=cell)
        for name in job_settings.joint_sets(self.study):
            own = {"set": job_settings.ic_sets(self.study, cell, [name])[name]}
            read = records if sections.ics.sets[name].start == "scratch" else inputs
            self.job(train_network, with_metadata([layout.ics(cell, name)]), read, own, cell=cell, ics=name)

    def tables(self) -> None:
        """Make the tables of all finished cells, also of seeds that other calls have computed."""
        methods, evaluation = tuple(self.study.methods), self.study.evaluation
        kinds = self.study.kinds
        cells = tuple((*names, seed) for names in self.study.cells for seed in self.study.seeds)
        with job_log(self.layout.log("compare_methods"), "compare_methods") as report:
            settings = CompareMethodsSettings(evaluation, methods, cells)
            compare_methods(Job(self.layout, report), settings, partial=True)
        with job_log(self.layout.log("aggregate"), "aggregate") as report:
            aggregate(Job(self.layout, report), AggregateSettings(kinds, evaluation, cells), partial=True)


def with_metadata(files: Iterable[Path]) -> list[Path]:
    """List files of weights or logits, each with its JSON, which the job writes last."""
    return [path for file in files for path in (file, metadata(file))]


def study_of(config: str, seeds: Iterable[int]) -> Study:
    """Read the study; raises ZtwError if it lacks a seed, or has what only `make reproduce` computes."""
    study = read_study(config)
    if others := set(seeds) - set(study.seeds):
        raise ZtwError(
            f"--seeds {min(others)}: is not in {config}, which has {', '.join(map(str, study.seeds))}"
        )
    if study.logits or study.int8_sets or study.int8_statics:
        raise ZtwError(f"{config}: has logits or methods in int8, which only make reproduce computes")
    check_plugins(study)
    return study


def main() -> int:
    """Run the study; return the exit status."""
    clear_environment()
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="seeds of the study; default: all")
    parser.add_argument("--threads", type=cores, default=usable_cores(), help="default: one for each core")
    given = parser.parse_args()
    try:
        run = Run(study_of(given.config, given.seeds), Layout(Path("results") / study_name(given.config)))
        ensure_user(run.study.data.root)
    except (ZtwError, OSError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    atexit.register(gc.unfreeze)
    make_reproducible(given.threads)
    for dataset in run.study.datasets:
        run.data(dataset)
    for seed in given.seeds or run.study.seeds:
        for names in run.study.cells:
            run.cell(Cell(*names, seed))
    run.tables()
    print(f"{run.layout.folder}: done; python workflow/publish.py {given.config} publishes it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
