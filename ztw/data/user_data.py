"""Convert a user's images (tensors, Dataset or DataLoader) to the `Data` that training takes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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

from ztw.data.dataset import Data, batch_indices
from ztw.device import check_default_dtype
from ztw.errors import ZtwError
from ztw.exits.logits import class_labels
from ztw.tensors import as_tensor, check_images

FORMS = "must be tensors (images, labels), a torch Dataset or a DataLoader"
# Samplers that draw from torch's global generator, or do not draw
SAMPLERS = (
    SequentialSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
)


@dataclass(frozen=True)
class Wanted:
    """The input and output of a network: images of `shape` (C, H, W), `num_classes` classes, batches on `device`."""

    shape: tuple[int, ...]
    num_classes: int
    device: torch.device

    def check(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        """Check images float (N, C, H, W) and labels int (N,).

        Returns:
            The images as given, and the labels as int64.

        Raises:
            ZtwError: for other shapes, dtypes or labels.
        """
        images, labels = as_tensor(images, "images"), as_tensor(labels, "labels")
        check_images(images, self.shape)
        if labels.dim() != 1 or len(labels) != len(images):
            raise ZtwError(
                f"labels: shape {tuple(labels.shape)}, must be ({len(images)},), one class number per image"
            )
        if not len(images):
            raise ZtwError("images: empty, must have at least one image")
        labels = class_labels(labels)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ZtwError(f"labels: must lie in 0..{self.num_classes - 1}, got {low}..{high}")
        return images, labels

    def moved(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Move a batch to the device, the images as float32 in channels_last memory."""
        where, format = self.device, torch.channels_last
        return images.to(where, torch.float32, memory_format=format), labels.to(where)


class GivenData(Data):
    """Base class of a user's data: images that are already normalised and augmented."""

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
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.batches`. `augmented` has no effect: only a Dataset may augment, from torch's global generator."""
        return map(self._batch, batch_indices(len(self), batch_size, generator)[skip:])

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class TensorData(GivenData):
    """Tensors: images float (N, C, H, W) and labels int64 (N,), on any device."""

    images: Tensor
    labels: Tensor
    wanted: Wanted

    def take(self, indices: Tensor) -> Self:
        """See `Data.take`; copies the tensors."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.wanted.moved(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class DatasetData(GivenData):
    """A torch Dataset of (image (C, H, W), label); it augments the images itself."""

    dataset: Any
    wanted: Wanted
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def take(self, indices: Tensor) -> Self:
        """See `Data.take`."""
        return replace(self, index=self.index[indices])

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        samples = [self.dataset[sample] for sample in self.index[indices].tolist()]
        return _checked(samples, self.wanted, collate=True)


@dataclass(frozen=True)
class LoaderData(GivenData):
    """A DataLoader with its own order and augmentation; batch_size: at least 2, samples: images in an epoch."""

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
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.batches`. The loader's batch size is used. Skipped batches are loaded as well.

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

    def _drawn(self, seed: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
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


def _checked(batch: Any, wanted: Wanted, collate: bool = False) -> tuple[Tensor, Tensor]:
    if collate:
        try:
            batch = default_collate(batch)
        except (TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ZtwError(
                f"dataset: samples cannot be collated into a batch ({reason}); each must be (image tensor, label)"
            ) from error
    if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) != 2:
        found = f"{len(batch)} items" if isinstance(batch, Sequence) else f"a {type(batch).__name__}"
        raise ZtwError(f"data: a batch is {found}, must be (images, labels)")
    return wanted.moved(*wanted.check(*batch))


def as_data(given: Any, wanted: Wanted, what: str = "data") -> Data:
    """Convert a user's data for a network.

    Args:
        given: (images float (N, C, H, W), labels int (N,)), a torch Dataset, a DataLoader, or `Data`. Tensors are
            checked here, batches of other data when they are made.
        what: name of the argument, for errors.

    Raises:
        ZtwError: if the data are empty, of another type, or do not fit the network.
    """
    if isinstance(given, Data):
        return given.to(wanted.device)
    try:
        if isinstance(given, DataLoader):
            return _of_loader(given, wanted)
        if isinstance(given, tuple | list) and len(given) == 2:
            return TensorData(*wanted.check(*given), wanted)
        if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
            if not len(given):  # type: ignore[arg-type]
                raise ZtwError("data: the Dataset is empty")
            return DatasetData(given, wanted, torch.arange(len(given)))  # type: ignore[arg-type]
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


def wanted_by(network: Any) -> Wanted:
    """Return the input, output and device of an EarlyExitNetwork.

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
    return Wanted(tuple(backbone.input_shape), backbone.num_classes, like.device)
