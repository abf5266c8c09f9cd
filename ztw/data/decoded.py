"""Decoded images in memory or in a memory map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ztw.data.augmentation import augment, normalise
from ztw.data.dataset import Data, batch_indices


@dataclass(frozen=True)
class ImageSet(Data):
    """Decoded images, in memory or in a memory map, with their normalisation and augmentation.

    Args:
        stored: uint8 (M, channels, size, size), read when a batch needs it.
        labels: int64 (N,).
        index: int64 (N,), positions of the set's images in `stored`; None = all.
        mean, std: per channel, of pixels in [0, 1].
        flip, crop_padding, colour_jitter, jitter_order: see `ztw.data.augmentation.augment`.
    """

    stored: Tensor
    labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    crop_padding: int = 0
    colour_jitter: float = 0.0
    jitter_order: str = "fixed"
    index: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        return self.stored.device

    @property
    def images(self) -> Tensor:
        """uint8 (N, channels, size, size); a copy if the set is a subset."""
        return self.stored if self.index is None else self.stored[self.index]

    def _at(self, indices: Tensor) -> Tensor:
        return self.stored[indices if self.index is None else self.index[indices]]

    def take(self, indices: Tensor) -> Self:
        """Return the subset at `indices` (int64), which shares the stored images."""
        indices = indices.to(self.device)
        index = indices if self.index is None else self.index[indices]
        return replace(self, labels=self.labels[indices], index=index)

    def to(self, device: torch.device) -> Self:
        """Return the set itself on a CPU, else a copy of its images on `device`."""
        if device.type == self.device.type == "cpu":
            return self
        images = torch.empty((len(self), *self.stored.shape[1:]), dtype=self.stored.dtype, device=device)
        for start in range(0, len(self), 4096):  # in parts, to save the CPU's memory
            part = torch.arange(start, min(start + 4096, len(self)), device=self.device)
            images[start : start + 4096] = self._at(part)
        return replace(self, stored=images, labels=self.labels.to(device), index=None)

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        augmented: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `ztw.data.dataset.Data.batches`."""
        order = batch_indices(len(self), batch_size, generator)
        return self._made(order[skip:], generator if augmented else None)

    def _made(self, order: list[Tensor], draw: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in order:
            indices = indices.to(self.device, non_blocking=True)
            images = self._at(indices)
            if draw is not None:
                jitter = (self.colour_jitter, self.jitter_order)
                images = augment(images, self.flip, self.crop_padding, draw, *jitter)
            yield normalise(images, self.mean, self.std), self.labels[indices]
