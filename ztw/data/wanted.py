"""What a network takes and predicts, and a user's batches in that form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ztw.batch import Batch, InputSpec, converted, size_of, tensors_of
from ztw.device import check_default_dtype
from ztw.errors import ZtwError
from ztw.exits.logits import class_labels
from ztw.tensors import as_tensor

LABELS = ("labels", "label")  # Hugging Face's names: of a batch, and of a sample


@dataclass(frozen=True)
class Wanted:
    """The inputs and the output of a network: batches as in `inputs`, `num_classes` classes, on `device`."""

    inputs: InputSpec
    num_classes: int
    device: torch.device

    def separate(self, given: Any, name: str) -> tuple[Any, Any]:
        """Separate the inputs from the labels, of a batch or of one sample.

        Args:
            given: (inputs, labels); a dict of the inputs and "labels" or "label"; or (tensor, ..., labels) for a
                network that takes a tuple.
            name: what is given, for errors.

        Returns:
            The inputs in the network's form, unchecked, and the labels.

        Raises:
            ZtwError: for another form, and for inputs that the network does not take or that are missing.
        """
        if isinstance(given, Mapping):
            label = next((key for key in LABELS if key in given), None)
            if label is None:
                raise ZtwError(f"{name} is a dict of {_listed(given)}; it must have labels, too")
            return self._named({key: value for key, value in given.items() if key != label}), given[label]
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise ZtwError(
                f"{name} is a {type(given).__name__}, must be (inputs, labels) or a dict with labels"
            )
        if self.is_flat(given):
            return tuple(given[:-1]), given[-1]
        if len(given) != 2:
            raise ZtwError(f"{name} is {len(given)} items, must be (inputs, labels) or a dict with labels")
        inputs, labels = given
        return self._named(inputs) if isinstance(inputs, Mapping) else inputs, labels

    def is_flat(self, given: Sequence[Any]) -> bool:
        """Return whether a sequence is (tensor, ..., labels), with the tensors of a network that takes a tuple."""
        fits = self.inputs.form == "tuple" and len(given) == len(self.inputs.inputs) + 1
        return fits and not isinstance(given[0], tuple | list)

    def _named(self, inputs: Mapping[Any, Any]) -> Any:
        """Check the names of a dict; return the only value for a network that takes one tensor without a name."""
        names = self.inputs.names
        if self.inputs.form != "dict":
            if self.inputs.form == "tensor" and len(inputs) == 1:
                return next(iter(inputs.values()))
            takes = "one tensor" if self.inputs.form == "tensor" else f"a tuple of {len(names)} tensors"
            raise ZtwError(f"inputs: a dict of {_listed(inputs)}; the network takes {takes}")
        if others := [key for key in inputs if key not in names]:
            raise ZtwError(
                f"inputs: {_listed(others)}: the network takes only {_listed(names)}; remove the others, or make the"
                " network from an example that has them"
            )
        if missing := [key for key in names if key not in inputs]:
            raise ZtwError(f"inputs: {_listed(missing)} missing; the network takes {_listed(names)}")
        return dict(inputs)

    def check(self, inputs: Any, labels: Any) -> tuple[Batch, Tensor]:
        """Check inputs, of N samples, and labels int (N,).

        Returns:
            The inputs as tensors of the given types, and the labels as int64.

        Raises:
            ZtwError: for other forms, shapes, dtypes or labels.
        """
        checked, labels = self.inputs.check(inputs), as_tensor(labels, "labels")
        arrays = [checked] if self.inputs.form == "tensor" else tensors_of(checked)
        batch = self.inputs.build([as_tensor(array, "inputs") for array in arrays])
        if labels.dim() != 1 or len(labels) != size_of(batch):
            raise ZtwError(
                f"labels: shape {tuple(labels.shape)}, must be ({size_of(batch)},), one class number per sample"
            )
        if not len(labels):
            raise ZtwError(f"{self.inputs.names[0]}: empty, must have at least one sample")
        labels = class_labels(labels)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ZtwError(f"labels: must lie in 0..{self.num_classes - 1}, got {low}..{high}")
        return batch, labels

    def moved(self, inputs: Batch, labels: Tensor) -> tuple[Batch, Tensor]:
        """Move a batch to the device: floats as float32, images in channels_last memory, integers as int64."""
        return converted(inputs, self.device), labels.to(self.device)


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))


def wanted_by(network: Any) -> Wanted:
    """Return the inputs, output and device of an EarlyExitNetwork.

    Raises:
        ZtwError: if its weights are not float32.
    """
    check_default_dtype()
    backbone = network.backbone
    like = next(backbone.parameters(), torch.empty(0))
    if other := {str(part.dtype) for part in network.parameters() if part.dtype != torch.float32}:
        raise ZtwError(
            f"the network has {', '.join(sorted(other))} weights, must be torch.float32; call .float() first"
        )
    return Wanted(backbone.inputs, backbone.num_classes, like.device)
