"""Publish the gallery of a study: thumbnails of test images that leave first, in the middle and last."""

from __future__ import annotations

from pathlib import Path

from ztw.data.prepare import prepare_dataset
from ztw.data.record import of_split
from ztw.errors import ZtwError
from ztw.evaluation.curves import SplitPredictions
from ztw.evaluation.prediction_files import read_prediction_file
from ztw.exits.ensembles import build_ensemble
from ztw.files import data_root, read_json, write_json
from ztw.jobs.draw_gallery import Shown, best_method, gallery_of
from ztw.models.checkpoints import load_strictly
from ztw.reporting.gallery import draw_gallery
from ztw.reporting.style import save
from ztw.study.kinds import EARLY_EXITS
from ztw.study.layout import Cell, Layout, figure_title
from ztw.study.settings import Study
from ztw.tensors import read_tensors

LARGEST = 200_000  # bytes of a gallery's file


def publish_galleries(study: Study, made: Layout) -> None:
    """Write the gallery of every data set and architecture, from published predictions and the study's images.

    Raises:
        ZtwError: if there are no images, or no published predictions of a method, or a gallery's file is too large.
    """
    if study.logits:
        raise ZtwError("--thumbnails: a study from logits has no images; leave the option out")
    for dataset, arch in study.cells:
        cells = [Cell(dataset, arch, seed) for seed in study.seeds]
        cell = next((cell for cell in cells if _methods(study, made, cell)), None)
        if cell is None:
            raise ZtwError(
                f"--thumbnails: {made.folder}/{dataset}/{arch} has no published predictions of a method with early"
                " exits; publish them with --logits first"
            )
        path = made.gallery(figure_title(dataset, arch))
        write_json(path, _gallery(study, made, cell))
        if (size := path.stat().st_size) > LARGEST:
            raise ZtwError(
                f"{path}: has {size:,} bytes, at most {LARGEST:,} are published; use smaller images"
            )


def _methods(study: Study, made: Layout, cell: Cell) -> list[str]:
    """Return the methods with early exits whose predictions, and ensemble if they have one, are published."""
    found = []
    for name, row in study.methods.items():
        needed = [made.metrics(cell, name), made.published_predictions(cell, row.ics)]
        if row.ensemble not in (None, "uniform"):
            needed.append(made.published_ensemble(cell, name))
        if study.kinds[name] == EARLY_EXITS and not row.int8 and all(map(Path.is_file, needed)):
            found.append(name)
    return found


def _gallery(study: Study, made: Layout, cell: Cell) -> dict[str, object]:
    name, budget = best_method(made, cell, _methods(study, made, cell), study.evaluation)
    row, settings = study.methods[name], study.cells[cell.dataset, cell.arch].data
    predictions = read_prediction_file(made.published_predictions(cell, row.ics))
    splits = {split: SplitPredictions(*getattr(predictions, split)) for split in ("validation", "test")}
    if row.ensemble is not None:
        fit = study.ensembles.sets[row.ensemble]
        exits, _, num_classes = predictions.test[0].shape
        ensemble = build_ensemble(fit.kind, exits, num_classes, fit.include_final)
        weights = made.published_ensemble(cell, name)
        if weights.is_file():
            load_strictly(ensemble, read_tensors(weights), str(weights))
        splits = {split: SplitPredictions(ensemble(of.logits), of.labels) for split, of in splits.items()}
    record = prepare_dataset(cell.dataset, data_root(study.data.root), study.data.image_folders)
    shown = Shown(name, row, budget, splits)
    return gallery_of(made, cell, shown, of_split(record, "test"), settings, study.evaluation)


def draw_galleries(study: Study, made: Layout) -> None:
    """Draw the figure of every published gallery."""
    for dataset, arch in study.cells:
        title = figure_title(dataset, arch)
        if made.gallery(title).is_file():
            save(draw_gallery(read_json(made.gallery(title))), made.figure(title, "gallery"))
