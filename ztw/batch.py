"""Batches: what a network takes, and what passes between its stages, of one tensor or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ztw.errors import ZtwError
from ztw.tensors import as_tensor

# One tensor (N, ...), or several with the same N: by position or by name, e.g. input_ids and attention_mask
Batch = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")
EXAMPLES = 4  # rows of an example that a description keeps


def tensors_of(batch: Batch) -> tuple[Tensor, ...]:
    """Return the tensors, or NumPy arrays, of a batch in order."""
    if isinstance(batch, dict):
        return tuple(batch.values())
    return batch if isinstance(batch, tuple) else (batch,)


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to each tensor of a batch."""
    return _like(batch, [change(tensor) for tensor in tensors_of(batch)])


def _like(batch: Batch, tensors: Sequence[Tensor]) -> Any:
    if isinstance(batch, dict):
        return dict(zip(batch, tensors, strict=True))
    return tuple(tensors) if isinstance(batch, tuple) else tensors[0]


def size_of(batch: Batch) -> int:
    """Return the number of samples N."""
    return len(tensors_of(batch)[0])


def device_of(batch: Batch) -> torch.device:
    """Return the device of a batch; that of NumPy arrays is the CPU."""
    first = tensors_of(batch)[0]
    return first.device if isinstance(first, Tensor) else torch.device("cpu")


def pick(batch: Any, rows: Tensor) -> Any:
    """Select rows (int64) of a batch, each tensor in its memory format."""
    return _pick(batch, rows) if isinstance(batch, Tensor) else mapped(batch, lambda x: _pick(x, rows))


def _pick(x: Tensor, rows: Tensor) -> Tensor:
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


def joined(batches: Sequence[Any]) -> Any:
    """Concatenate batches of the same form."""
    return _like(batches[0], [torch.cat(pieces) for pieces in zip(*map(tensors_of, batches), strict=True)])


def split(batch: Any, size: int) -> Iterator[Any]:
    """Yield pieces of at most `size` samples."""
    pieces = [tensor.split(size) for tensor in tensors_of(batch)]
    yield from (_like(batch, piece) for piece in zip(*pieces, strict=True))


@dataclass(frozen=True)
class Input:
    """One tensor that a network takes.

    Args:
        name: of the tensor.
        shape: without the batch axis; None for an axis of any size, e.g. the length of a text.
        dtype: "float32", "int64" or "bool".
        example: for integers and bools, rows of valid values, as nested lists.
        limits: for each axis of any size the smallest and the largest size, None without a limit; () = no limits.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    example: Any = None
    limits: tuple[tuple[int, int | None] | None, ...] = ()

    def side(self, axis: int) -> str:
        """Return the allowed sizes of an axis in words."""
        if self.shape[axis] is not None:
            return str(self.shape[axis])
        least, most = self._between(axis)
        if most is not None:
            return f"{least} to {most}"
        return "any" if least <= 1 else f"{least} or more"

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether a tensor may have a shape, given without the batch axis."""
        if len(shape) != len(self.shape):
            return False
        for axis, (side, wanted) in enumerate(zip(shape, self.shape, strict=True)):
            least, most = (wanted, wanted) if wanted is not None else self._between(axis)
            if side < least or (most is not None and side > most):
                return False
        return True

    def _between(self, axis: int) -> tuple[int, int | None]:
        return (self.limits[axis] if self.limits else None) or (0, None)


@dataclass(frozen=True)
class InputSpec:
    """What a network takes: one tensor, several by position, or several by name.

    Args:
        inputs: the tensors.
        form: "tensor", "tuple" or "dict".
    """

    inputs: tuple[Input, ...]
    form: str = "tensor"

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> InputSpec:
        """Describe one tensor of floats; shape: without the batch axis, e.g. (channels, height, width) of images.

        Raises:
            ZtwError: for a shape with a side below 1.
        """
        if not shape or not all(isinstance(side, int) and side > 0 for side in shape):
            raise ZtwError(f"input_shape {shape!r}: must be whole numbers, e.g. (channels, height, width)")
        return cls((Input("images" if len(shape) == 3 else "inputs", tuple(shape)),))

    @classmethod
    def of_example(
        cls, example: Any, free: Callable[[int, int], bool] = lambda tensor, axis: False
    ) -> InputSpec:
        """Describe the form of an example batch.

        Args:
            example: a tensor, or a tuple or dict of tensors, with the batch axis first.
            free: (number of the tensor, axis) -> whether the axis may have any size.

        Raises:
            ZtwError: for anything else.
        """
        if isinstance(example, Mapping):
            form, names, given = "dict", list(example), list(example.values())
        elif isinstance(example, tuple | list) and not isinstance(example, Tensor):
            form, given = "tuple", list(example)
            names = [f"input_{number}" for number in range(len(given))]
        else:
            form, given = "tensor", [example]
            names = ["images" if getattr(example, "ndim", 0) == 4 else "inputs"]
        if not given or not all(isinstance(name, str) for name in names):
            raise ZtwError(
                f"example: {type(example).__name__}, must be a tensor, or a tuple or dict of tensors"
            )
        inputs = []
        for number, (name, value) in enumerate(zip(names, given, strict=True)):
            tensor = as_tensor(value, f"example: {name}")
            kind = str(tensor.dtype).removeprefix("torch.")
            if kind not in (*FLOATS, *INTEGERS, "bool") or tensor.dim() < 1 or not len(tensor):
                raise ZtwError(
                    f"example: {name} has shape {tuple(tensor.shape)} and dtype {kind}, must be (N, ...) of numbers"
                )
            shape = tuple(
                None if free(number, axis) else side for axis, side in enumerate(tensor.shape) if axis
            )
            if kind in FLOATS:
                inputs.append(Input(name, shape))
            else:
                dtype = "bool" if kind == "bool" else "int64"
                rows = tensor[:EXAMPLES].to(getattr(torch, dtype))
                inputs.append(Input(name, shape, dtype, rows.tolist()))
        if len({len(value) for value in given}) > 1:
            raise ZtwError(f"example: sizes {[len(value) for value in given]}, must be one batch size")
        return cls(tuple(inputs), form)

    @classmethod
    def from_json(cls, described: Any) -> InputSpec:
        """Read a description of `to_json`."""
        inputs = [
            Input(
                item["name"],
                tuple(item["shape"]),
                item["dtype"],
                item.get("example"),
                tuple(None if limit is None else tuple(limit) for limit in item.get("limits", ())),
            )
            for item in described["inputs"]
        ]
        return cls(tuple(inputs), described["form"])

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON."""
        inputs = []
        for item in self.inputs:
            described: dict[str, Any] = {"name": item.name, "shape": list(item.shape), "dtype": item.dtype}
            if item.example is not None:
                described["example"] = item.example
            if item.limits:
                described["limits"] = [None if limit is None else list(limit) for limit in item.limits]
            inputs.append(described)
        return {"form": self.form, "inputs": inputs}

    @property
    def names(self) -> list[str]:
        """The names of the tensors."""
        return [item.name for item in self.inputs]

    @property
    def shapes(self) -> dict[str, list[int | None]]:
        """The shape of each tensor, without the batch axis."""
        return {item.name: list(item.shape) for item in self.inputs}

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(C, H, W) of a network of images, else None."""
        (first, *others) = self.inputs
        is_image = self.form == "tensor" and not others and len(first.shape) == 3 and first.dtype == "float32"
        return tuple(side or 0 for side in first.shape) if is_image else None

    def build(self, tensors: Sequence[Tensor]) -> Batch:
        """Return tensors in the form of a batch."""
        if self.form == "dict":
            return dict(zip(self.names, tensors, strict=True))
        return tensors[0] if self.form == "tensor" else tuple(tensors)

    def sample(self, count: int, like: Tensor | None = None) -> Batch:
        """Return a batch of `count` samples: normal random numbers, and the example's integers.

        Args:
            count: N.
            like: a tensor whose dtype floats take, and whose device all take.
        """
        generator = torch.Generator().manual_seed(0)
        like = torch.empty(0) if like is None else like
        drawn = []
        for item in self.inputs:
            if item.example is None:
                shape = (side or 1 for side in item.shape)
                drawn.append(torch.randn(count, *shape, generator=generator).to(like))
            else:
                rows = torch.tensor(item.example, dtype=getattr(torch, item.dtype))
                drawn.append(rows[torch.arange(count) % len(rows)].to(like.device))
        return self.build(drawn)

    def check(self, batch: Any) -> Batch:
        """Check a batch; return its tensors or NumPy arrays as given, in the form of a batch.

        float64, float16 and bfloat16 stand for float32, and all integers for int64: the caller converts. A bool where
        integers are taken becomes int64.

        Raises:
            ZtwError: for another form, shape or dtype, different numbers of samples, and NaN or infinite values.
        """
        given = self._parts(batch)
        for number, item in enumerate(self.inputs):
            _check(given[number], item)
            if item.dtype == "int64" and str(given[number].dtype).endswith("bool"):
                given[number] = as_tensor(given[number], item.name).long()
        if len({len(tensor) for tensor in given}) > 1:
            sizes = ", ".join(f"{name} {len(tensor)}" for name, tensor in zip(self.names, given, strict=True))
            raise ZtwError(f"inputs: {sizes} samples, must be the same number")
        return self.build(given)

    def _parts(self, batch: Any) -> list[Any]:
        if self.form == "tensor":
            return [batch if isinstance(batch, np.ndarray) else as_tensor(batch, self.inputs[0].name)]
        if self.form == "dict":
            if not isinstance(batch, Mapping) or set(batch) != set(self.names):
                found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
                raise ZtwError(f"inputs: {found}, must be a dict of {', '.join(self.names)}")
            parts = [batch[name] for name in self.names]
        else:
            if not isinstance(batch, tuple | list) or len(batch) != len(self.inputs):
                found = f"{len(batch)} items" if isinstance(batch, tuple | list) else type(batch).__name__
                raise ZtwError(f"inputs: {found}, must be a tuple of {len(self.inputs)} tensors")
            parts = list(batch)
        pairs = zip(parts, self.names, strict=True)
        return [part if isinstance(part, np.ndarray) else as_tensor(part, name) for part, name in pairs]


def _check(tensor: Tensor | np.ndarray, item: Input) -> None:
    if not tensor.ndim or not item.fits(tensor.shape[1:]):
        wanted = ", ".join(item.side(axis) for axis in range(len(item.shape)))
        raise ZtwError(
            f"{item.name}: shape {tuple(tensor.shape)}, must be (N, {wanted}), the network's input size"
            if item.shape
            else f"{item.name}: shape {tuple(tensor.shape)}, must be (N,)"
        )
    kind = str(tensor.dtype).removeprefix("torch.")
    if item.dtype == "int64":
        if kind not in (*INTEGERS, "bool"):
            raise ZtwError(f"{item.name}: {kind}, must be int64 (other integers are converted)")
        return
    if item.dtype == "bool":
        if kind != "bool":
            raise ZtwError(f"{item.name}: {kind}, must be bool")
        return
    if kind not in FLOATS:
        raise ZtwError(
            f"{item.name}: {kind}, must be float32 and normalised as in training (other floating-point types are"
            " converted)"
        )
    # min and max return NaN if any value is NaN
    if math.prod(tensor.shape) and not all(math.isfinite(float(end)) for end in (tensor.min(), tensor.max())):
        raise ZtwError(f"{item.name}: some values are NaN or infinite, must be finite")


def converted(batch: Any, device: torch.device, floats: torch.dtype = torch.float32) -> Any:
    """Move a checked batch to a device: floats to one dtype, images to channels_last memory, integers to int64.

    Bools stay as they are.
    """

    def move(given: Any) -> Tensor:
        tensor = as_tensor(given, "inputs")
        if not tensor.is_floating_point():
            return tensor.to(device, tensor.dtype if tensor.dtype == torch.bool else torch.int64)
        if tensor.dim() == 4:
            return tensor.to(device, floats, memory_format=torch.channels_last)
        return tensor.to(device, floats)

    return mapped(batch, move)
