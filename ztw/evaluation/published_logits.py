"""Logits of published studies, to evaluate rules, ensembles and calibrations without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.exits.logits import check_logits, class_labels
from ztw.tensors import read_metadata, read_tensors, write_tensors

# The published studies of this checkout
REFERENCE = Path(__file__).parents[2] / "results/reference"
FOLDER = "predictions"  # folder in a cell


@dataclass(frozen=True, repr=False)
class Predictions:
    """Logits of a trained network's exits for validation and test images, from `load_predictions`.

    Logits are stored in half precision. Accuracies can therefore differ from the study's in the fourth digit.

    Attributes:
        validation: (logits float32 (K, N, C), labels int64 (N,)), to choose thresholds and fit ensembles.
        test: the same for the test images, to report results.
        cost: float64 (K,), cumulative cost of the exits, in multiply-accumulate operations (MACs).
        base_cost: MACs of the backbone alone.
    """

    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    cost: Tensor
    base_cost: float

    def __repr__(self) -> str:
        exits, images, num_classes = self.test[0].shape
        return (
            f"Predictions({exits} exits, {num_classes} classes, {len(self.validation[1])} validation and {images} test"
            f" images; exits cost {self.cost[0] / self.base_cost:.0%} to {self.cost[-1] / self.base_cost:.0%} of the"
            " backbone)"
        )


def load_predictions(name: str, root: Path | str | None = None) -> Predictions:
    """Load the logits of a set of internal classifiers (ICs) from a published study.

    Args:
        name: "<study>/<data set>/<architecture>/seed<seed>/<IC set>".
        root: folder of published studies; None = results/reference of this checkout.

    Returns:
        Logits, labels and costs.

    Raises:
        ZtwError: for an unknown name (the message lists the known ones), and for a damaged or other file.

    Example:
        >>> import ztw
        >>> predictions = ztw.load_predictions("quick/fashion_mnist/resnet20/seed0/cascade_detached")
        >>> ensemble = ztw.fit_ensemble(*predictions.validation)
    """
    root = REFERENCE if root is None else Path(root)
    cell, _, ics = str(name).strip("/").rpartition("/")
    path = root / cell / FOLDER / f"{ics}.safetensors"
    if not path.is_file():
        raise ZtwError(f"predictions {name!r}: not in {root}; known: {', '.join(published(root)) or 'none'}")
    tensors, facts = read_tensors(path, "restore it from the repository"), read_metadata(path)
    try:
        splits = {
            split: (tensors[f"{split}_logits"].float(), class_labels(tensors[f"{split}_labels"]))
            for split in ("validation", "test")
        }
        cost = torch.tensor(json.loads(facts["cost"]), dtype=torch.float64)
        found = Predictions(splits["validation"], splits["test"], cost, float(facts["base_cost"]))
    except (KeyError, ValueError) as error:
        raise ZtwError(f"{path}: not a file of published predictions ({error!r})") from error
    for logits, labels in (found.validation, found.test):
        check_logits(logits, labels, cost)
    return found


def published(root: Path | str = REFERENCE) -> list[str]:
    """List the names of all published predictions."""
    files = sorted(Path(root).glob(f"*/**/{FOLDER}/*.safetensors"))
    return [(file.parents[1] / file.stem).relative_to(root).as_posix() for file in files]


def write_published(
    path: Path | str, splits: Mapping[str, tuple[Tensor, Tensor]], cost: Tensor, base_cost: float
) -> None:
    """Write the predictions of an IC set in half precision.

    Args:
        path: see `ztw.study.layout.Layout.published_predictions`.
        splits: "validation" and "test" -> (logits (K, N, C), labels (N,)).
        cost: (K,) cumulative cost of the exits, in MACs.
        base_cost: MACs of the backbone alone.

    Raises:
        ZtwError: for logits beyond half precision's range.
    """
    tensors: dict[str, Tensor] = {}
    for split, (logits, labels) in splits.items():
        largest = logits.shape[-1] - 1
        tensors[f"{split}_logits"] = logits.half()
        tensors[f"{split}_labels"] = labels.to(torch.uint8 if largest < 256 else torch.int16)
        if not tensors[f"{split}_logits"].isfinite().all():
            raise ZtwError(f"{path}: logits beyond half precision's range, {float(logits.abs().max()):.3g}")
    write_tensors(path, tensors, {"cost": json.dumps(cost.tolist()), "base_cost": repr(base_cost)})
