"""Logits of a published study, in half precision: rules, ensembles and calibrations are scored without any training."""

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

# where this checkout has its published studies
REFERENCE = Path(__file__).parents[2] / "results/reference"


@dataclass(frozen=True, repr=False)
class Predictions:
    """What the single exits of a trained network say of images that nothing was trained on.

    validation, test: (logits float32 (K, N, C), labels int64 (N,)), the first to choose and to fit on, the second to
    report; they were rounded to half precision, so that accuracies can differ from the study's in the fourth digit.
    cost: (K,) float64, cumulative, in MACs; base_cost: of the backbone alone.
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
    """The published predictions of an IC set.

    name: "<study>/<data set>/<architecture>/seed<seed>/<IC set>"; root: the folder of published studies, of this
    checkout's results/reference unless given. Raises ZtwError, with the names that are there, for an unknown one.
    """
    root = REFERENCE if root is None else Path(root)
    study, _, rest = str(name).strip("/").partition("/")
    path = root / study / "predictions" / f"{rest}.safetensors"
    if not rest or not path.is_file():
        raise ZtwError(f"predictions {name!r}: not in {root}; known: {', '.join(published(root)) or 'none'}")
    tensors, facts = read_tensors(path, "take it from the repository again"), read_metadata(path)
    try:
        splits = {
            split: (tensors[f"{split}_logits"].float(), class_labels(tensors[f"{split}_labels"]))
            for split in ("validation", "test")
        }
        cost = torch.tensor(json.loads(facts["cost"]), dtype=torch.float64)
        found = Predictions(splits["validation"], splits["test"], cost, float(facts["base_cost"]))
    except (KeyError, ValueError) as error:
        raise ZtwError(f"{path}: is no file of published predictions ({error!r})") from error
    for logits, labels in (found.validation, found.test):
        check_logits(logits, labels, cost)
    return found


def published(root: Path | str = REFERENCE) -> list[str]:
    """The names of all published predictions."""
    files = sorted(Path(root).glob("*/predictions/**/*.safetensors"))
    names = (file.relative_to(root).with_suffix("").parts for file in files)
    return ["/".join((study, *rest)) for study, _, *rest in names]


def write_published(
    path: Path | str, splits: Mapping[str, tuple[Tensor, Tensor]], cost: Tensor, base_cost: float
) -> None:
    """Write the predictions of an IC set; splits: "validation" and "test" -> (logits (K, N, C), labels (N,))."""
    tensors: dict[str, Tensor] = {}
    for split, (logits, labels) in splits.items():
        largest = logits.shape[-1] - 1
        tensors[f"{split}_logits"] = logits.half()
        tensors[f"{split}_labels"] = labels.to(torch.uint8 if largest < 256 else torch.int16)
        if not tensors[f"{split}_logits"].isfinite().all():
            raise ZtwError(f"{path}: logits beyond half precision's range, {float(logits.abs().max()):.3g}")
    write_tensors(path, tensors, {"cost": json.dumps(cost.tolist()), "base_cost": repr(base_cost)})
