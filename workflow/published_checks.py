"""What must hold before results are published, or added to published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from published_cells import Contents, backbone_accuracies, pairs

from ztw.errors import ZtwError
from ztw.files import read_json
from ztw.study.config import check_study, read_config
from ztw.study.layout import Cell
from ztw.study.settings import Study


def check_settings(study: Study, folder: Path, found: Contents) -> None:
    """Raises ZtwError when a result of a run was computed with other settings than the study has."""
    for cell, method in found.answers:
        row, place = study.methods[method], folder / str(cell)
        backbone = folder / str(_of_network(study, cell, method)) / "backbone.json"
        expected = {place / f"metrics/{method}.json": row}
        if backbone.is_file():  # what is trained jointly from scratch has none
            expected[backbone] = _sections(study, cell, method).backbone
        if not row.static:
            expected[place / f"ics/{row.ics}.json"] = _sections(study, cell, method).ics.sets[row.ics]
        for file, settings in expected.items():
            recorded, wanted = read_json(file)["settings"], json.loads(settings.model_dump_json())
            for name in wanted:
                if recorded.get(name) != wanted[name]:
                    raise ZtwError(
                        f"{file}: computed with {name} {recorded.get(name)}, the study has {wanted[name]};"
                        " run make reproduce first"
                    )


def check_addition(
    study: Study, published: Path, before: Contents, new: Contents, changed_logits: set[str]
) -> None:
    """Raises ZtwError when a published result would be lost, or stay beside what it cannot be compared with.

    changed_logits: files of predictions, relative to the folder of results, that are not those of what is published.
    """
    if lost := before.pairs - set(pairs(study)):
        cell, method = min(lost, key=str)
        raise ZtwError(
            f"{published}: has {method} of {cell}, which the study does not name; it would be lost"
        )
    was = check_study(read_config(published / "config.yaml"))
    then, now = backbone_accuracies(before.metrics), backbone_accuracies(new.metrics)
    again = {cell for cell, _ in new.pairs}
    for cell, method in sorted(before.pairs - new.pairs, key=str):
        old, wanted = _recipe(was, cell, method), _recipe(study, cell, method)
        if changed := [name for name in wanted if wanted[name] != old[name]]:
            raise ZtwError(
                f"{published}: {method} of {cell} was published with another {', '.join(changed)};"
                " compute it again, or publish without --add"
            )
        other_backbone = cell in then and cell in now and then[cell] != now[cell]
        other_logits = any(file.startswith(_predictions(study, cell, method)) for file in changed_logits)
        if cell in again and (other_backbone or other_logits):
            raise ZtwError(
                f"{published}: {cell} was trained again, and {method} is of the first training; publish all its"
                " methods together"
            )


def _predictions(study: Study, cell: Cell, method: str) -> str:
    """Where the predictions lie that a method is made of, in the folder of results."""
    row = study.methods[method]
    kind = "backbone_predictions" if row.static else f"predictions/{row.ics}"
    return f"{_of_network(study, cell, method)}/{kind}/"


def _of_network(study: Study, cell: Cell, method: str) -> Cell:
    """The cell whose folder has a method's backbone."""
    return Cell(cell.dataset, study.methods[method].static or cell.arch, cell.seed)


def _sections(study: Study, cell: Cell, method: str) -> Any:
    return study.backbones[cell.dataset, _of_network(study, cell, method).arch]


def _recipe(study: Study, cell: Cell, method: str) -> dict[str, Any]:
    """Whatever decides on the numbers of a cell and a method, but where files lie."""
    row, sections, ensembles = study.methods[method], _sections(study, cell, method), study.ensembles
    folder = sections.data.image_folders.get(cell.dataset)
    return {
        "row in methods": row,
        "data": sections.data.model_copy(update={"root": None, "image_folders": {}}),
        "size of the images": folder and folder.size,
        "backbone": sections.backbone,
        "ics": None if row.static else sections.ics.sets[row.ics],
        "ensemble": (
            ensembles.sets.get(row.ensemble) or ensembles.model_copy(update={"sets": {}})
            if row.ensemble
            else None
        ),
        "evaluation": study.evaluation,
    }
