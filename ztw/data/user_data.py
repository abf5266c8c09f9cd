"""Images that a caller of the library has: tensors, a Dataset or a DataLoader, as the `Data` that trainings take."""

from __future__ import annotations

import random
from abc import abstractmethod
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
# They draw from torch's global generator, or always the same
SAMPLERS = (
    SequentialSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
)


@dataclass(frozen=True)
class Wanted:
    """What a network takes and answers: images of `shape` (C, H, W), one of `num_classes` labels, on `device`."""

    shape: tuple[int, ...]
    num_classes: int
    device: torch.device

    def check(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        """Images float32 (N, C, H, W) and labels int64 (N,), as given; raises ZtwError for anything else."""
        images, labels = as_tensor(images, "images"), as_tensor(labels, "labels")
        check_images(images, self.shape)
        if labels.dim() != 1 or len(labels) != len(images):
            raise ZtwError(
                f"labels: shape {tuple(labels.shape)}, must be ({len(images)},), the number of a class each"
            )
        if not len(images):
            raise ZtwError("images: there are none")
        labels = class_labels(labels)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ZtwError(f"labels: must lie in 0..{self.num_classes - 1}, got {low}..{high}")
        return images, labels

    def moved(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device, in the memory format the networks compute in."""
        where, format = self.device, torch.channels_last
        return images.to(where, torch.float32, memory_format=format), labels.to(where)


class GivenData(Data):
    """What the three forms share: images are normalised and augmented already."""

    wanted: Wanted

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.wanted.device

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """How many there are."""
        return self.wanted.num_classes

    @abstractmethod
    def take(self, indices: Tensor) -> Self:
        """See `Data.take`."""

    def to(self, device: torch.device) -> Self:
        """See `Data.to`."""
        return replace(self, wanted=replace(self.wanted, device=device))  # type: ignore[type-var]


@dataclass(frozen=True)
class TensorData(GivenData):
    """images float (N, C, H, W) and labels int64 (N,), anywhere."""

    images: Tensor
    labels: Tensor
    wanted: Wanted

    def take(self, indices: Tensor) -> Self:
        """See `Data.take`; tensors are copied."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        augmented: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.batches`; there is nothing to augment."""
        order = batch_indices(len(self.labels), batch_size, generator)[skip:]
        return (self.wanted.moved(self.images[indices], self.labels[indices]) for indices in order)


@dataclass(frozen=True)
class DatasetData(GivenData):
    """A torch Dataset of (image (C, H, W), label), read sample by sample; what it augments it augments."""

    dataset: Any
    wanted: Wanted
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def take(self, indices: Tensor) -> Self:
        """See `Data.take`."""
        return replace(self, index=self.index[indices])

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        augmented: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.batches`; augmentation draws from torch's global generator, which checkpoints hold."""
        order = batch_indices(len(self), batch_size, generator)[skip:]
        return (self._batch(self.index[indices].tolist()) for indices in order)

    def _batch(self, samples: list[int]) -> tuple[Tensor, Tensor]:
        return _checked([self.dataset[sample] for sample in samples], self.wanted, collate=True)


@dataclass(frozen=True)
class LoaderData(GivenData):
    """A DataLoader, with its own batch size, order and augmentation; `batch_size`: what it counts as, at least 2."""

    loader: DataLoader
    wanted: Wanted
    batch_size: int
    samples: int

    def __len__(self) -> int:
        return self.samples

    def take(self, indices: Tensor) -> Self:
        """A loader gives what it gives: ZtwError."""
        raise ZtwError("a DataLoader has no samples by number; give its dataset")

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        augmented: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.batches`; the size is the loader's.

        generator: seeds the global generators of torch, numpy and Python for the loader, so that an epoch that
        is resumed is the same; batches to skip are loaded all the same. Raises ZtwError when there are fewer
        batches than the loader's length says.
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
                    f"data: the DataLoader has {number} batches, its length says {len(self.loader)}; correct"
                    " the length of its dataset or sampler"
                )
            if number >= skip:
                yield _checked(batch, self.wanted)

    def own_states(self) -> list[str]:
        """What of the loader a checkpoint cannot hold, each with the reason: [] where it resumes bit for bit."""
        loader, found = self.loader, []
        if loader.num_workers and loader.persistent_workers:
            found.append("persistent_workers=True: its workers' generators go on from one epoch to the next")
        if not getattr(loader, "in_order", True):
            found.append("in_order=False: its batches come as they are ready")
        if isinstance(loader.dataset, IterableDataset):
            return [*found, f"its dataset, {_kind(loader.dataset)}, decides the order and may draw it"]
        sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        if type(sampler) is BatchSampler:
            sampler = sampler.sampler
        if loader.generator is not None or getattr(sampler, "generator", None) is not None:
            found.append("it has a generator of its own, which no checkpoint holds")
        elif type(sampler) not in (*SAMPLERS, list, tuple, range):
            found.append(f"its sampler, {_kind(sampler)}, may draw from a generator of its own")
        return found


class _Generators:
    """Within it the global generators of torch (CPU), numpy and Python are at states of its own, from a seed on."""

    def __init__(self, seed: int) -> None:
        outside = _states()
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would change a GPU's, too
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
                f"dataset: its samples make no batch ({reason}); they must be (image tensor, label)"
            ) from error
    if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) != 2:
        found = f"{len(batch)} things" if isinstance(batch, Sequence) else f"a {type(batch).__name__}"
        raise ZtwError(f"data: gives {found} a batch, must give (images, labels)")
    return wanted.moved(*wanted.check(*batch))


def as_data(given: Any, wanted: Wanted, what: str = "data") -> Data:
    """What a caller has as the Data of a network; what: its name in errors.

    given: (images float (N, C, H, W), labels int (N,)), a torch Dataset, a DataLoader, or Data already. Tensors are
    looked at here, the others batch by batch. Raises ZtwError for anything else, for nothing at all, and for
    images and labels that are not the network's.
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
                raise ZtwError("the dataset is empty")
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
        raise ZtwError("the loader is empty")
    size = max(2, loader.batch_size or 2)
    samples = batches * size
    if loader.batch_size == size and not loader.drop_last and not isinstance(loader.dataset, IterableDataset):
        samples = min(samples, max(len(loader.sampler), samples - size + 1))  # type: ignore[arg-type]
    return LoaderData(loader, wanted, size, samples)


def wanted_by(network: Any) -> Wanted:
    """What an EarlyExitNetwork takes and answers, and where it is; raises ZtwError unless it is of float32."""
    check_default_dtype()
    backbone = network.backbone
    like = next(backbone.parameters(), torch.empty(0))
    if other := {str(part.dtype) for part in network.parameters() if part.dtype != torch.float32}:
        raise ZtwError(
            f"the network has weights of {', '.join(sorted(other))}, must be torch.float32; call .float() first"
        )
    return Wanted(tuple(backbone.input_shape), backbone.num_classes, like.device)
