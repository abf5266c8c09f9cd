"""What a user gives to `advise`: checks, an example, models as Backbones, and batches."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from ztw.batch import Batch, joined, mapped, size_of, split
from ztw.data.dataset import Data
from ztw.data.wanted import LABELS
from ztw.errors import ZtwError, is_number
from ztw.evaluation.turn_times import MOST
from ztw.models.backbone import Backbone, as_spec
from ztw.models.cascade import Whole
from ztw.models.cut import as_backbone
from ztw.models.heads import LogitsHead
from ztw.models.network import EarlyExitNetwork

CALIBRATION = 256  # training samples for int8
EXAMPLE = 4  # samples of an example


def check_numbers(allowed_loss: Any, batch_size: Any, threads: Any, epochs: Any, seed: Any) -> None:
    """Raise ZtwError for a number that is not allowed."""
    if not is_number(allowed_loss) or not 0 <= allowed_loss < 1:
        raise ZtwError(f"allowed_loss {allowed_loss!r}: must be a share of the samples in [0, 1)")
    for name, value in {"batch_size": batch_size, "threads": threads}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ZtwError(f"{name} {value!r}: must be a whole number of at least 1")
    if epochs is not None and (not is_number(epochs) or not 0 < epochs < float("inf")):
        raise ZtwError(f"epochs {epochs!r}: must be a number above 0, or None")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ZtwError(f"seed {seed!r}: must be a whole number of at least 0")


def named_models(alternatives: Any) -> dict[str, Any]:
    """Return the alternatives by name."""
    if isinstance(alternatives, nn.Module) or not isinstance(alternatives, Sequence | Mapping):
        raise ZtwError(
            f"alternatives: {type(alternatives).__name__}, must be a list of models, or a dict of them by name"
        )
    if isinstance(alternatives, Mapping):
        return {str(name): one for name, one in alternatives.items()}
    names = [one.arch if isinstance(one, Backbone) else type(one).__name__ for one in alternatives]
    return dict(zip(numbered(names), alternatives, strict=True))


def example_of(train: Any, input_shape: Any, example: Any) -> Any:
    """Return an example batch of what the models take."""
    if input_shape is not None and example is not None:
        raise ZtwError("advise: give either input_shape= or example=, not both")
    if input_shape is not None:
        return as_spec(tuple(input_shape)).sample(EXAMPLE)
    if example is not None:
        return example
    first = train
    if isinstance(train, Data):
        first = next(iter(train.batches(EXAMPLE)))
    elif isinstance(train, DataLoader):
        first = next(iter(train), None)
    elif isinstance(train, Dataset) or hasattr(train, "__getitems__"):
        first = default_collate([train[row] for row in range(min(EXAMPLE, len(train)))])
    inputs = _without_labels(first)
    if inputs is None:
        raise ZtwError(
            f"train: {type(train).__name__}, must be (inputs, labels), a dict with labels, a torch Dataset or a"
            " DataLoader, of at least one sample"
        )
    return _first_rows(inputs)


def _without_labels(given: Any) -> Any:
    """Return the inputs of a batch; None for another form."""
    if isinstance(given, Mapping):
        return {name: value for name, value in given.items() if name not in LABELS} or None
    if not isinstance(given, tuple | list) or len(given) < 2:
        return None
    return given[0] if len(given) == 2 else tuple(given[:-1])


def _first_rows(inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {name: value[:EXAMPLE] for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(value[:EXAMPLE] for value in inputs)
    return inputs[:EXAMPLE]


def to_backbone(model: Any, given: Any, name: str) -> tuple[Backbone, str]:
    """Return a copy of a model as a Backbone in eval mode, and "" or the reason why it could not be cut."""
    if isinstance(model, EarlyExitNetwork):
        if model.heads:
            raise ZtwError(f"advise: {name} has early exits already; give its .backbone")
        model = model.backbone
    if isinstance(model, Backbone):
        return copy.deepcopy(model).eval(), ""
    if not isinstance(model, nn.Module):
        raise ZtwError(f"advise: {name} is a {type(model).__name__}, must be a torch.nn.Module")
    try:
        return as_backbone(model, example=given).eval(), ""
    except ZtwError as error:
        whole = as_backbone(model, example=given, stages=[Whole(model)], classifier=LogitsHead())
        return whole.eval(), str(error)


def moved_like(other: Backbone, backbone: Backbone, name: str) -> Backbone:
    """Check an alternative, and move it to the model's device."""
    if other.num_classes != backbone.num_classes:
        raise ZtwError(
            f"advise: {name} has {other.num_classes} classes, the model has {backbone.num_classes}; must be the same"
        )
    return other.to(next(backbone.parameters(), torch.empty(0)).device)


def calibration(data: Data) -> Batch:
    """Return the first training samples, on the CPU."""
    found: list[Any] = []
    for inputs, _ in data.batches(64):
        found.append(mapped(inputs, lambda tensor: tensor.cpu()))
        if sum(map(size_of, found)) >= CALIBRATION:
            break
    return joined(found)


def batches_to_time(data: Data, size: int, seed: int) -> list[Any]:
    """Return random batches to time, contiguous and on the CPU; of a DataLoader, the first ones."""
    count = min(len(data), MOST * size)
    with contextlib.suppress(ZtwError):  # a DataLoader
        data = data.take(torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count])
    found: list[Any] = []
    for inputs, _ in data.batches(size):
        found += split(mapped(inputs, lambda tensor: tensor.cpu().contiguous()), size)
        if len(found) >= MOST:
            break
    full = [batch for batch in found if size_of(batch) == size] or found[:1]
    return full[:MOST]


def numbered(names: Sequence[str]) -> list[str]:
    """Return names that differ, by a number behind each repeated one."""
    return [
        name if names[:place].count(name) == 0 else f"{name} {names[:place].count(name) + 1}"
        for place, name in enumerate(names)
    ]
