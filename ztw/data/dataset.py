"""What a split of a data set is: labelled images that come in batches, wherever they are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor


class Data(ABC):
    """Labelled images that can be fed to a network, wherever they are kept.

    labels: int64 (N,), on `device`; mean and std per channel, of pixels in [0, 1].
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
        """Where labels and batches are."""

    @abstractmethod
    def take(self, indices: Tensor) -> Self:
        """The subset at `indices` (int64); no image is read or copied."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same set for a network on `device`."""

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        augmented: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (images float32 (B, C, H, W), labels int64 (B,)); shuffled when a generator is given.

        augmented: flips, crops and colours drawn from the generator. Training passes (with a generator)
        drop a last batch of one image, which BatchNorm cannot use. skip: batches that are not made. The order
        is drawn at the call, what belongs to a batch as it is made: a generator that is put where it was after
        `skip` batches draws for the others what it would have drawn.
        """


def batch_indices(count: int, batch_size: int, generator: torch.Generator | None) -> list[Tensor]:
    """Positions int64 (B,) of each batch, in order or shuffled; no last batch of one when shuffled."""
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    batches = order.split(batch_size)
    return [indices for indices in batches if generator is None or len(indices) > 1 or count == 1]
