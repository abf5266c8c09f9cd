"""Logits of published studies, in half precision: rules, ensembles and calibrations are scored without training."""

from __future__ import annotations

from pathlib import Path

from ztw.errors import ZtwError
from ztw.evaluation.prediction_files import Predictions, read_prediction_file
from ztw.evaluation.prediction_formats import FORMATS

# The published studies of this checkout
REFERENCE = Path(__file__).parents[2] / "results/reference"
FOLDER = "predictions"  # folder in a cell


def load_predictions(name: Path | str, root: Path | str | None = None) -> Predictions:
    """Load the published predictions of an IC set or a static network, or a file of `ztw.write_predictions`.

    Args:
        name: "<study>/<data set>/<architecture>/seed<seed>/<IC set or static row>"; or the path of a file, with its
            suffix.
        root: the folder of published studies; this checkout's results/reference unless given.

    Raises:
        ZtwError: for an unknown name (the message lists the known ones), and for a damaged or other file.

    Example:
        >>> import ztw
        >>> predictions = ztw.load_predictions("quick/fashion_mnist/resnet20/seed0/cascade_detached")
        >>> ensemble = ztw.fit_ensemble(*predictions.validation)
    """
    if Path(name).suffix in FORMATS:
        return read_prediction_file(name)
    root, name = REFERENCE if root is None else Path(root), str(name)
    cell, _, of = name.strip("/").rpartition("/")
    path = root / cell / FOLDER / f"{of}.safetensors"
    if not path.is_file():
        raise ZtwError(f"predictions {name!r}: not in {root}; known: {', '.join(published(root)) or 'none'}")
    return read_prediction_file(path)


def published(root: Path | str = REFERENCE) -> list[str]:
    """List the names of all published predictions."""
    files = sorted(Path(root).glob(f"*/**/{FOLDER}/*.safetensors"))
    return [(file.parents[1] / file.stem).relative_to(root).as_posix() for file in files]
