"""Convert a user's data (tensors, Dataset or DataLoader) to the `Data` that training takes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from ztw.batch import Batch, mapped
from ztw.data.dataset import Data, batch_indices
from ztw.data.wanted import Wanted
from ztw.errors import ZtwError, is_number
from ztw.tensors import as_tensor

FORMS = "must be (inputs, labels), a dict with labels, a torch Dataset or a DataLoader"
# Samplers that draw from torch's global generator, or do not draw
SAMPLERS = (
    SequentialSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
)


class GivenData(Data):
    """Base class of the three forms: inputs that are already normalised and augmented."""

    wanted: Wanted

    @property
    def device(self) -> torch.device:
        """Device of the batches."""
        return self.wanted.device

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes."""
        return self.wanted.num_classes

    def to(self, device: torch.device) -> Self:
        """See `Data.to`."""
        return replace(self, wanted=replace(self.wanted, device=device))  # type: ignore[type-var]

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        augmented: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Batch, Tensor]]:
        """See `Data.batches`; nothing is augmented, but by a Dataset, which draws from torch's global generator."""
        return map(self._batch, batch_indices(len(self), batch_size, generator)[skip:])

    def _batch(self, indices: Tensor) -> tuple[Batch, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class TensorData(GivenData):
    """Tensors: checked inputs of N samples and labels int64 (N,), on any device."""

    inputs: Batch
    labels: Tensor
    wanted: Wanted

    def take(self, indices: Tensor) -> Self:
        """See `Data.take`; copies the tensors."""
        inputs = mapped(self.inputs, lambda tensor: tensor[indices])
        return replace(self, inputs=inputs, labels=self.labels[indices])

    def _batch(self, indices: Tensor) -> tuple[Batch, Tensor]:
        part = self.take(indices)
        return self.wanted.moved(part.inputs, part.labels)


@dataclass(frozen=True)
class DatasetData(GivenData):
    """A Dataset of samples (inputs, label), or dicts with a label, which does its own augmentation."""

    dataset: Any
    wanted: Wanted
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def take(self, indices: Tensor) -> Self:
        """See `Data.take`."""
        return replace(self, index=self.index[indices])

    def _batch(self, indices: Tensor) -> tuple[Batch, Tensor]:
        rows = self.index[indices].tolist()
        several = getattr(self.dataset, "__getitems__", None)
        given = several(rows) if callable(several) else [self.dataset[row] for row in rows]
        samples = [_as_tensors(self.wanted.separate(sample, "data: a sample")) for sample in given]
        try:
            inputs, labels = default_collate(samples)
        except (TypeError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ZtwError(
                f"dataset: samples cannot be collated into a batch ({reason}); each must be (inputs, label) of tensors"
                " of one shape; for texts of different lengths, give a DataLoader with a collate_fn that pads them"
            ) from error
        return self.wanted.moved(*self.wanted.check(inputs, labels))


def _as_tensors(part: Any) -> Any:
    """Turn lists of numbers in a sample into tensors, because default_collate transposes lists."""
    if isinstance(part, Mapping):
        return {name: _as_tensors(value) for name, value in part.items()}
    if isinstance(part, tuple):
        return tuple(map(_as_tensors, part))
    return as_tensor(part, "dataset") if isinstance(part, list) and is_number(_first(part)) else part


def _first(part: Any) -> Any:
    """Return the first item of nested lists."""
    while isinstance(part, tuple | list) and part:
        part = part[0]
    return part


@dataclass(frozen=True)
class LoaderData(GivenData):
    """A DataLoader with its own order and augmentation; batch_size: at least 2, samples: number in an epoch."""

    loader: DataLoader
    wanted: Wanted
    batch_size: int
    samples: int

    def __len__(self) -> int:
        return self.samples

    def take(self, indices: Tensor) -> Self:
        """Raise ZtwError: a DataLoader has no access by index."""
        raise ZtwError("a DataLoader gives no access to single samples; give its dataset")

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        augmented: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Batch, Tensor]]:
        """See `Data.batches`; the loader decides the batch size. Skipped batches are loaded, too.

        Args:
            generator: seeds torch's, numpy's and Python's global generators while the loader works, so that a
                resumed epoch has the same batches.

        Raises:
            ZtwError: if there are fewer batches than the loader's length.
        """
        if generator is None:
            return (_checked(batch, self.wanted) for batch in self.loader)
        seed = int(torch.randint(2**62, (), generator=generator))
        return self._drawn(seed, skip)

    def _drawn(self, seed: int, skip: int) -> Iterator[tuple[Batch, Tensor]]:
        drawing = _Generators(seed)
        with drawing:
            batches = iter(self.loader)
        for number in range(len(self.loader)):
            with drawing:
                batch = next(batches, None)
            if batch is None:
                raise ZtwError(
                    f"data: the DataLoader has {number} batches, but its length is {len(self.loader)}; correct"
                    " the length of its dataset or sampler"
                )
            if number >= skip:
                yield _checked(batch, self.wanted)

    def own_states(self) -> list[str]:
        """List the random states of the loader that no checkpoint can save; [] if training resumes exactly."""
        loader, found = self.loader, []
        if loader.num_workers and loader.persistent_workers:
            found.append("persistent_workers=True: its workers keep their random state between epochs")
        if not getattr(loader, "in_order", True):
            found.append("in_order=False: its batches have no fixed order")
        if isinstance(loader.dataset, IterableDataset):
            return [*found, f"its dataset, {_kind(loader.dataset)}, decides the order, which may be random"]
        sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        if type(sampler) is BatchSampler:
            sampler = sampler.sampler
        if loader.generator is not None or getattr(sampler, "generator", None) is not None:
            found.append("it has its own generator, which no checkpoint saves")
        elif type(sampler) not in (*SAMPLERS, list, tuple, range):
            found.append(f"its sampler, {_kind(sampler)}, may have its own generator")
        return found


class _Generators:
    """Give a block its own states of the global generators of torch (CPU), numpy and Python."""

    def __init__(self, seed: int) -> None:
        outside = _states()
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also changes GPU generators
        np.random.seed(seed % 2**32)
        random.seed(seed)
        self.other = _states()
        _set_states(outside)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    def _swap(self) -> None:
        here = _states()
        _set_states(self.other)
        self.other = here


def _states() -> tuple[Tensor, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set_states(states: tuple[Tensor, Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def _kind(thing: object) -> str:
    return type(thing).__name__


def _checked(given: Any, wanted: Wanted) -> tuple[Batch, Tensor]:
    inputs, labels = wanted.separate(given, "data: a batch")
    _check_not_transposed(inputs, wanted)
    return wanted.moved(*wanted.check(inputs, labels))


def _check_not_transposed(inputs: Any, wanted: Wanted) -> None:
    """Raise ZtwError for lists that default_collate has transposed: a tensor (N,) for each number of a sample."""
    if wanted.inputs.form == "tensor":
        parts = [inputs]
    else:
        parts = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    for name, part in zip(wanted.inputs.names, parts, strict=False):
        first = _first(part)
        if first is not part and isinstance(first, Tensor) and first.dim() == 1:
            raise ZtwError(
                f"{name}: a {_kind(part)} of {len(part)} tensors, must be one tensor; make each sample a tensor, e.g."
                " by dataset.with_format('torch'), or stack the samples in collate_fn"
            )


def as_data(given: Any, wanted: Wanted, what: str = "data") -> Data:
    """Convert a user's data for a network.

    Args:
        given: inputs and labels of N samples in any form of `Wanted.separate`, a Dataset, a DataLoader, or `Data`.
            Tensors are checked at once, other forms batch by batch.
        what: name of the argument, for errors.

    Raises:
        ZtwError: if the data are empty, of another type, or do not fit the network.
    """
    if isinstance(given, Data):
        return given.to(wanted.device)
    try:
        if isinstance(given, DataLoader):
            return _of_loader(given, wanted)
        pair = isinstance(given, tuple | list) and (len(given) == 2 or wanted.is_flat(given))
        if pair or isinstance(given, Mapping):
            return TensorData(*wanted.check(*wanted.separate(given, f"{what}: the data")), wanted)
        # Hugging Face's Dataset is none of torch's, but has the method of one that returns several samples
        listed = isinstance(given, Dataset) or hasattr(given, "__getitems__")
        if listed and not isinstance(given, IterableDataset):
            if not len(given):
                raise ZtwError(f"{what}: the Dataset is empty")
            return DatasetData(given, wanted, torch.arange(len(given)))
    except (TypeError, NotImplementedError) as error:
        if isinstance(error, ZtwError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise ZtwError(f"{what}: {type(given).__name__} ({reason}), {FORMS}") from error
    raise ZtwError(f"{what}: {type(given).__name__}, {FORMS}")


def _of_loader(loader: DataLoader, wanted: Wanted) -> LoaderData:
    batches = len(loader)
    if not batches:
        raise ZtwError("data: the DataLoader is empty")
    size = max(2, loader.batch_size or 2)
    samples = batches * size
    if loader.batch_size == size and not loader.drop_last and not isinstance(loader.dataset, IterableDataset):
        samples = min(samples, max(len(loader.sampler), samples - size + 1))  # type: ignore[arg-type]
    return LoaderData(loader, wanted, size, samples)
