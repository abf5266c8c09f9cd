"""Publish the finished cells of a study in results/reference/<study>, or make its tables again.

usage: python workflow/publish.py CONFIG [--machine TEXT] [--logits SET ...]
       python workflow/publish.py FOLDER

A published study is the union of its cells. CONFIG: adds the cells that results/<study> has, or replaces them, and
makes tables and figures. FOLDER: makes those of a published study again, after cells were copied into it.
--machine: what the cells were computed on. --logits: IC sets whose predictions for validation and test images are
published for the first seed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory

from published_cells import check_recipe, publish_cell, publish_logits, recipe

from ztw.errors import ZtwError
from ztw.evaluation.published_logits import REFERENCE
from ztw.jobs.aggregate import AggregateSettings, aggregate
from ztw.jobs.compare_methods import CompareMethodsSettings, compare_methods
from ztw.jobs.job import Job
from ztw.jobs.plot_figures import PlotFiguresSettings, plot_figures
from ztw.progress import describe
from ztw.reporting.results import results_of
from ztw.study.config import check_study, read_config, study_name
from ztw.study.layout import Cell, Layout, figure_title
from ztw.study.settings import Study


def publish(config: Path, target: Path, machine: str, logits: list[str]) -> None:
    """Publish the finished cells of a study in a folder, beside the cells that are there, and make its tables.

    Raises:
        ZtwError: when nothing is finished, when a published result would be lost, and when a cell was computed with
            other settings than the study has. Nothing changes then.
    """
    study, run = check_study(read_config(config)), Layout(Path("results") / study_name(config))
    finished = _methods(study, run)
    if not finished:
        raise ZtwError(f"{run.folder}: nothing of the study is finished; run make reproduce first")
    with _changed(target) as made:
        for cell, methods in finished.items():
            before = sorted(made.cell(cell).rglob("*"))
            shutil.rmtree(made.cell(cell), ignore_errors=True)
            publish_cell(study, run, made, cell, methods, machine)
            for ics in logits if cell.seed == study.seeds[0] else ():
                publish_logits(study, run, made, cell, ics)
            shutil.copyfile(config, made.cell_config(cell))
            if lost := [file for file in before if not file.exists()]:
                raise ZtwError(
                    f"{lost[0]}: is published, {run.folder} does not have it, and it would be lost; finish the run,"
                    " give --logits for predictions, or delete the file first"
                )
        shutil.copyfile(config, made.config)
        make_tables(made)
        made.table("pipeline").unlink(missing_ok=True)
        if finished.keys() == _methods(study, made).keys() and run.table("pipeline").is_file():
            shutil.copyfile(run.table("pipeline"), made.table("pipeline"))  # all cells are of one run


def rebuild(folder: Path) -> None:
    """Make the tables and figures of a published study again, from its cells; nothing changes where that fails."""
    check_study(read_config(Layout(folder).config))
    with _changed(folder) as made:
        make_tables(made)


@contextmanager
def _changed(folder: Path) -> Iterator[Layout]:
    """Give a copy of a folder, which takes the folder's place when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch, folder.name)
        if folder.is_dir():
            shutil.copytree(folder, made)
        made.mkdir(exist_ok=True)
        try:
            yield Layout(made)
        except ZtwError as error:
            raise ZtwError(str(error).replace(str(made), str(folder))) from error
        if folder.is_dir():
            folder.rename(Path(scratch, "before"))
        made.rename(folder)


def _methods(study: Study, layout: Layout) -> dict[Cell, list[str]]:
    """Return the cells that have results, and the methods that each has."""
    found: dict[Cell, list[str]] = {}
    for cell, method in results_of(layout, _cells(study), tuple(study.methods), partial=True):
        found.setdefault(cell, []).append(method)
    return found


def _cells(study: Study) -> list[Cell]:
    return [Cell(*names, seed) for names in study.cells for seed in study.seeds]


def make_tables(made: Layout) -> None:
    """Write the tables and figures of all cells that are there.

    Times of two cells may be of two machines: those of the first that has some are shown.
    """
    study = check_study(read_config(made.config))
    found, methods = _methods(study, made), tuple(study.methods)
    _check(study, made, found)
    for file in [*made.folder.glob("tables/latency.*"), *made.folder.glob("figures/*")]:
        file.unlink()
    job, evaluation, cells = Job(made), study.evaluation, tuple(map(astuple, found))
    timed = {(cell.dataset, cell.arch): cell for cell in reversed(found) if made.latency(cell).is_file()}
    times = tuple(astuple(timed[names]) for names in study.cells if names in timed)
    compare_methods(job, CompareMethodsSettings(evaluation, methods, cells), partial=True)
    aggregate(job, AggregateSettings(methods, evaluation, cells, times), partial=True)
    for names in dict.fromkeys((cell.dataset, cell.arch) for cell in found):
        plotted = PlotFiguresSettings(
            *names, study.seeds, study.families, methods, evaluation, names in timed
        )
        plot_figures(job, figure_title(*names), plotted, partial=True)
    for file in [
        *made.folder.rglob(".*.sha256"),
        *made.folder.glob("figures/*.pdf"),
    ]:  # git vouches for files
        file.unlink()


def _check(study: Study, made: Layout, found: dict[Cell, list[str]]) -> None:
    """Check that the study names every cell and has its settings, and say what is missing."""
    every = results_of(made, _cells(study), tuple(study.methods))
    if others := set(made.folder.rglob("metrics/*.json")) - {made.metrics(*of) for of in every}:
        raise ZtwError(f"{min(others)}: {made.config} does not name it; publish with a CONFIG that does")
    for cell, methods in found.items():
        was = check_study(read_config(made.cell_config(cell)))
        check_recipe(recipe(was, made, cell, methods), recipe(study, made, cell, methods))
    if missing := [f"{method} of {cell}" for cell, method in every if method not in found.get(cell, ())]:
        print(f"{len(missing)} of {len(every)} results are missing, n is smaller: {', '.join(missing)}")


def main() -> int:
    """Publish or rebuild; returns the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    parser.add_argument("study", type=Path, metavar="CONFIG | FOLDER")
    parser.add_argument("--machine", default="")
    parser.add_argument("--logits", nargs="*", default=[], metavar="SET")
    given = parser.parse_args()
    try:
        if given.study.is_dir():
            rebuild(given.study)
        else:
            publish(given.study, REFERENCE / study_name(given.study), given.machine, given.logits)
    except (ZtwError, OSError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
