"""Publish the finished cells of a study in results/reference/<study>, or make its tables again.

usage: python workflow/publish.py CONFIG [--machine TEXT] [--logits NAME ...] [--logits-seeds first|all] [--thumbnails]
       python workflow/publish.py FOLDER [--thumbnails]

CONFIG: add the finished cells of results/<study> to results/reference/<study>, or replace them there, and make its
tables and figures. FOLDER: make the tables and figures of a published study again, after you copied cells into it.
Both write results/reference/leaderboard.csv again.
--machine: the hardware that computed the cells. --logits: IC sets and static rows, or all; publish their predictions
for validation and test images, in float16, and the weights of ensembles of them. --logits-seeds: for the first seed
(the default) or all seeds. --thumbnails: publish small copies of up to 27 test images, for the report; only for images
that may be shown. Later calls keep them.
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

from published_cells import check_recipe, provenance, publish_cell, recipe
from published_gallery import draw_galleries, publish_galleries
from published_predictions import publish_predictions

from ztw.errors import ZtwError
from ztw.evaluation.published_logits import REFERENCE
from ztw.files import write_json
from ztw.jobs.aggregate import AggregateSettings, aggregate
from ztw.jobs.compare_frontier import CompareFrontierSettings, compare_frontier
from ztw.jobs.compare_methods import CompareMethodsSettings, compare_methods
from ztw.jobs.job import Job
from ztw.jobs.plot_figures import PlotFiguresSettings, plot_figures
from ztw.progress import describe
from ztw.reporting.leaderboard import write_leaderboard
from ztw.reporting.results import results_of
from ztw.study.config import check_study, read_config, study_name
from ztw.study.layout import Cell, Layout, figure_title
from ztw.study.settings import Study


def publish(
    config: Path,
    target: Path,
    machine: str,
    logits: list[str],
    every_seed: bool = False,
    thumbnails: bool = False,
) -> None:
    """Add the finished cells of a study to a published study, and make its tables.

    Args:
        config: the study's file.
        target: the folder of the published study.
        machine: the hardware that computed the cells, in words.
        logits: IC sets and static rows whose predictions are published, or "all".
        every_seed: publish predictions of all seeds, not only of the first.
        thumbnails: publish example images, too.

    Raises:
        ZtwError: if nothing is finished, a published file would be lost, or a cell was computed with other settings
            than the study's file has. The published study then stays as it is.
    """
    study, run = check_study(read_config(config)), Layout(Path("results") / study_name(config))
    finished = _methods(_results(study, run))
    if not finished:
        raise ZtwError(f"{run.folder}: no cell is finished; run make reproduce first")
    with _changed(target) as made:
        for cell, methods in finished.items():
            before = [file for file in sorted(made.cell(cell).rglob("*")) if file.is_file()]
            shutil.rmtree(made.cell(cell), ignore_errors=True)
            comes_from = publish_cell(study, run, cell, methods, made)
            write_json(made.provenance(cell), provenance(run, machine) | comes_from)
            shutil.copyfile(config, made.cell_config(cell))
            if logits and (every_seed or cell.seed == study.seeds[0]):
                publish_predictions(study, run, cell, methods, logits, made)
            if lost := [file for file in before if not file.exists()]:
                raise ZtwError(
                    f"{lost[0]}: is published, but {run.folder} does not have it; finish the run, give --logits for"
                    " predictions and ensembles, or delete the published file first"
                )
        shutil.copyfile(config, made.config)
        if thumbnails:
            publish_galleries(study, made)
        make_tables(made)
        made.table("pipeline").unlink(missing_ok=True)
        # only if one run computed all cells
        if finished.keys() == _methods(_results(study, made)).keys() and run.table("pipeline").is_file():
            shutil.copyfile(run.table("pipeline"), made.table("pipeline"))
    if logits:
        sizes = [path.stat().st_size for path in target.glob("*/**/predictions/*.safetensors")]
        print(f"{target}: {len(sizes)} files of logits, {sum(sizes) / 2**20:.1f} MiB")


def rebuild(folder: Path, thumbnails: bool = False) -> None:
    """Make the tables and figures of a published study again. If that fails, nothing changes.

    thumbnails: publish example images, too.
    """
    with _changed(folder) as made:
        if thumbnails:
            publish_galleries(check_study(read_config(made.config)), made)
        make_tables(made)


@contextmanager
def _changed(folder: Path) -> Iterator[Layout]:
    """Yield a copy of a folder, and replace the folder by the copy if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch, folder.name)
        shutil.copytree(folder, made) if folder.is_dir() else made.mkdir()
        try:
            yield Layout(made)
        except ZtwError as error:
            raise ZtwError(str(error).replace(str(made), str(folder))) from error
        if folder.is_dir():
            folder.rename(Path(scratch, "before"))
        made.rename(folder)


def _results(study: Study, layout: Layout, partial: bool = True) -> list[tuple[Cell, str]]:
    """List every cell with every method; partial: only pairs with results."""
    cells = [Cell(*names, seed) for names in study.cells for seed in study.seeds]
    return results_of(layout, cells, tuple(study.methods), partial)


def _methods(results: list[tuple[Cell, str]]) -> dict[Cell, list[str]]:
    cells = dict.fromkeys(cell for cell, _ in results)
    return {cell: [method for of, method in results if of == cell] for cell in cells}


def make_tables(made: Layout) -> None:
    """Write the tables and figures of all published cells, with the times of the first seed that was timed."""
    study = check_study(read_config(made.config))
    methods, evaluation = tuple(study.methods), study.evaluation
    found = _checked(study, made)
    optional = ("tables/latency.*", "tables/comparison.csv", "figures/*")
    for file in [file for pattern in optional for file in made.folder.glob(pattern)]:
        file.unlink()
    timed = {(c.dataset, c.arch): astuple(c) for c in reversed(found) if made.latency(c).is_file()}
    cells, times = tuple(map(astuple, found)), tuple(timed[names] for names in study.cells if names in timed)
    compare_methods(Job(made), CompareMethodsSettings(evaluation, methods, cells), partial=True)
    aggregate(Job(made), AggregateSettings(study.kinds, evaluation, cells, times), partial=True)
    frontier, int8 = "held-out" in evaluation.protocols, study.int8_methods
    if frontier:
        of_frontier = CompareFrontierSettings(study.kinds, evaluation, cells, tuple(timed), int8)
        compare_frontier(Job(made), of_frontier, partial=True)
    for dataset, arch in dict.fromkeys((cell.dataset, cell.arch) for cell in found):
        drawn = PlotFiguresSettings(
            dataset=dataset,
            arch=arch,
            seeds=study.seeds,
            families=study.families,
            headline=study.headline,
            kinds=study.kinds,
            int8=int8,
            evaluation=evaluation,
            timed=(dataset, arch) in timed,
            frontier=frontier,
        )
        plot_figures(Job(made), figure_title(dataset, arch), drawn, partial=True)
    draw_galleries(study, made)
    # no seals of published files, because git has their hashes
    for file in [*made.folder.rglob(".*.sha256"), *made.folder.glob("figures/*.pdf")]:
        file.unlink()


def _checked(study: Study, made: Layout) -> dict[Cell, list[str]]:
    """Return the published cells and their methods. Raise ZtwError if the study lacks one or has other settings."""
    every, found = _results(study, made, partial=False), _results(study, made)
    if others := set(made.folder.rglob("metrics/*.json")) - {made.metrics(*result) for result in every}:
        raise ZtwError(
            f"{min(others)}: {made.config} lacks its cell or method; publish with a CONFIG that has both"
        )
    for cell, methods in _methods(found).items():
        was = check_study(read_config(made.cell_config(cell)))
        check_recipe(recipe(was, made, cell, methods), recipe(study, made, cell, methods))
    for cell, methods in _methods([result for result in every if result not in found]).items():
        print(f"{cell}: no results of {', '.join(methods)}; their n is smaller")
    return _methods(found)


def main() -> int:
    """Publish or rebuild a study; return the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    parser.add_argument("study", type=Path, metavar="CONFIG | FOLDER")
    parser.add_argument("--machine", default="")
    parser.add_argument("--logits", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--logits-seeds", choices=("first", "all"), default="first")
    parser.add_argument("--thumbnails", action="store_true")
    given = parser.parse_args()
    try:
        target = given.study if given.study.is_dir() else REFERENCE / study_name(given.study)
        if given.study.is_dir():
            rebuild(target, given.thumbnails)
        else:
            every_seed = given.logits_seeds == "all"
            publish(given.study, target, given.machine, given.logits, every_seed, given.thumbnails)
        if target.resolve().parent == REFERENCE:
            write_leaderboard(REFERENCE)
    except (ZtwError, OSError) as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
