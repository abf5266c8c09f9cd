"""The interface of a split: labelled samples in batches, in memory or on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor


class Data(ABC):
    """Labelled samples, such as images or texts, that can be fed to a network.

    Args:
        labels: int64 (N,), on `device`.
        num_classes: number of classes.
        mean, std: of images, per channel, of pixels in [0, 1].
    """

    labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the labels and batches."""

    @abstractmethod
    def take(self, indices: Tensor) -> Self:
        """Return the subset at `indices` (int64) without reading samples."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """Return the same images, with labels and batches on `device`."""

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        augmented: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Any, Tensor]]:
        """Return the batches of an epoch, shuffled if a generator is given.

        The order is drawn at the call, a batch's augmentation when the batch is made. To resume an epoch
        after `skip` batches, give the generator the state that it had after these batches.

        Args:
            batch_size: samples per batch.
            generator: for shuffling and augmentation. With it, a last batch of one sample is dropped: BatchNorm
                cannot train on it.
            augmented: whether to augment, e.g. to flip, crop and jitter images.
            skip: number of batches to leave out at the beginning.

        Returns:
            A `ztw.batch.Batch`, e.g. images float32 (B, C, H, W), and labels int64 (B,) of each batch.
        """


def batch_indices(count: int, batch_size: int, generator: torch.Generator | None) -> list[Tensor]:
    """Return the indices int64 (B,) of each batch. A generator shuffles them and drops a last batch of one image."""
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    batches = order.split(batch_size)
    return [indices for indices in batches if generator is None or len(indices) > 1 or count == 1]
