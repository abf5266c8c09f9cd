"""Images that can be fed to a network: sets of uint8 tensors, their held-out split, their batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ztw.augmentation import augment, normalise
from ztw.checkpoints import read_tensors
from ztw.errors import ZtwError
from ztw.files import sha256


class Data(ABC):
    """Labelled images that can be fed to a network, wherever they are kept.

    labels: int64 (N,), on `device`; mean and std per channel, of pixels in [0, 1].
    """

    labels: Tensor
    classes: int
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
        self, batch_size: int, generator: torch.Generator | None = None, augmented: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See the function `batches`."""


@dataclass(frozen=True)
class ImageSet(Data):
    """Decoded images, perhaps memory-mapped, with what is needed to feed them to a network.

    stored: uint8 (M, channels, size, size), read where a batch needs it; index: int64 (N,), which of
    them belong to the set, in order, None for all; labels: int64 (N,), theirs.
    mean and std per channel in [0, 1]; flip, crop_padding, colour_jitter: see `augment`.
    """

    stored: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = False
    crop_padding: int = 0
    colour_jitter: float = 0.0
    index: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.stored.device

    @property
    def images(self) -> Tensor:
        """uint8 (N, channels, size, size): a copy, unless the set is whole; batches do without it."""
        return self.stored if self.index is None else self.stored[self.index]

    def _at(self, indices: Tensor) -> Tensor:
        return self.stored[indices if self.index is None else self.index[indices]]

    def take(self, indices: Tensor) -> Self:
        """The subset at `indices` (int64); shares the stored images."""
        indices = indices.to(self.device)
        index = indices if self.index is None else self.index[indices]
        return replace(self, labels=self.labels[indices], index=index)

    def to(self, device: torch.device) -> Self:
        """The same set on `device`: on the CPU itself, on a GPU a copy of the images taken."""
        if device.type == self.device.type == "cpu":
            return self
        images = torch.empty((len(self), *self.stored.shape[1:]), dtype=self.stored.dtype, device=device)
        for start in range(0, len(self), 4096):  # never a second copy in the CPU's memory
            part = torch.arange(start, min(start + 4096, len(self)), device=self.device)
            images[start : start + 4096] = self._at(part)
        return replace(self, stored=images, labels=self.labels.to(device), index=None)

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, augmented: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See the function `batches`."""
        for indices in batch_indices(len(self), batch_size, generator):
            indices = indices.to(self.device)
            images = self._at(indices)
            if augmented and generator is not None:
                images = augment(images, self.flip, self.crop_padding, generator, self.colour_jitter)
            yield normalise(images, self.mean, self.std), self.labels[indices]


def load_split(prepared: dict[str, Any], split: str) -> Data:
    """Open one split that `ztw.fetch.prepare_dataset` has made ready; images are read when they are used.

    prepared: the record `prepare_dataset` returned, perhaps with a study's own flip, crop_padding,
    colour_jitter, mean, std, workers; split: "train" or "test".
    Raises ZtwError when the decoded file is missing, truncated or not what the record says.
    """
    path = Path(prepared["decoded"][split])
    hint = "delete it and the study's data/*.json, and run again to decode it anew"
    tensors = read_tensors(path, hint)  # memory-mapped
    if not is_unaltered(path, prepared, split):
        raise ZtwError(f"{path}: altered since it was decoded (its SHA-256 differs); {hint}")
    common = {
        "labels": tensors["labels"],
        "classes": prepared["classes"],
        "mean": tuple(prepared["mean"]),
        "std": tuple(prepared["std"]),
        "flip": prepared["flip"],
        "colour_jitter": prepared.get("colour_jitter", 0.0),
    }
    if prepared.get("streamed"):
        from ztw.streaming import StreamedSet

        files = (tensors["text"], tensors["ends"])
        place, size, workers = Path(prepared["folder"]), prepared["size"], prepared.get("workers")
        return StreamedSet(folder=place, files=files, size=size, workers=workers, **common)
    return ImageSet(stored=tensors["images"], crop_padding=prepared["crop_padding"], **common)


def stamp(path: Path) -> list[int]:
    """Size in bytes and time of change in ns: equal to what was recorded, the file needs no hashing."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def is_unaltered(path: Path, record: dict[str, Any], split: str) -> bool:
    """Whether a decoded file is what its record says, by its stamp or else by its SHA-256."""
    return record.get("stamps", {}).get(split) == stamp(path) or sha256(path) == record["sha256"][split]


def held_out_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split training samples into (train, validation) indices, stratified by class and seeded.

    labels: int64 (N,); fraction: share of each class that is held out, in (0, 1).
    Raises ZtwError when the fraction leaves either part empty.
    """
    if not 0 < fraction < 1:
        raise ZtwError(f"validation fraction {fraction!r}: must lie strictly between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out[members[: round(fraction * len(members))]] = True
    if held_out.all() or not held_out.any():
        raise ZtwError(f"validation fraction {fraction!r} of {len(labels)} images leaves a part empty")
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def batch_indices(count: int, batch_size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Positions int64 (B,) of each batch, in order or shuffled; no last batch of one when shuffled."""
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    for indices in order.split(batch_size):
        if generator is None or len(indices) > 1 or count == 1:
            yield indices


def batches(
    data: Data, batch_size: int, generator: torch.Generator | None = None, augmented: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images float32 (B, C, H, W), labels int64 (B,)); shuffled when a generator is given.

    Training passes (with a generator) drop a last batch of one image, which BatchNorm cannot use.
    """
    return data.batches(batch_size, generator, augmented)
