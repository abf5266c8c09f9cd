"""Decode images when a batch needs them, for data sets larger than memory."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ztw.data.augmentation import jitter_colours, normalise
from ztw.data.dataset import Data, batch_indices
from ztw.data.images import read_rgb
from ztw.errors import ZtwError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class StreamedSet(Data):
    """Images that worker processes decode when a batch needs them.

    Args:
        files: (text, ends) from `ztw.data.folders.write_listing`, paths below `folder`.
        labels: int64 (N,).
        size: side of the network's input in pixels.
        flip: flip at random, in addition to training's random resized crops.
        colour_jitter, jitter_order: see `ztw.data.augmentation.jitter_colours`.
        workers: number of processes; 0 = none, None = torch's number of threads.
        index: int64 (N,), positions of the set's images in `files`; None = all.
    """

    folder: Path
    files: tuple[Tensor, Tensor]
    labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    flip: bool = True
    colour_jitter: float = 0.0
    jitter_order: str = "fixed"
    workers: int | None = None
    index: Tensor | None = None
    device: torch.device = CPU

    def take(self, indices: Tensor) -> Self:
        """Return the subset at `indices` (int64)."""
        index = indices.cpu() if self.index is None else self.index[indices.cpu()]
        return replace(self, labels=self.labels[indices.to(self.device)], index=index)

    def to(self, device: torch.device) -> Self:
        """Return the same set with batches on `device`."""
        return replace(self, labels=self.labels.to(device), device=device)

    def path(self, position: int) -> Path:
        """Return the path of the image at `position`, 0..N-1."""
        row = position if self.index is None else int(self.index[position])
        text, ends = self.files
        start = int(ends[row - 1]) if row else 0
        return self.folder / os.fsdecode(bytes(text[start : int(ends[row])].numpy()))

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator | None = None,
        augmented: bool = False,
        skip: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `ztw.data.dataset.Data.batches`. The batches do not depend on the number of workers.

        Raises:
            ZtwError: if an image cannot be read or a worker dies.
        """
        order = batch_indices(len(self), batch_size, generator)
        draw = generator if augmented else None
        seeds = None if draw is None else torch.randint(2**62, (len(self),), generator=draw)
        return self._made(order[skip:], seeds, draw)

    def _made(
        self, order: list[Tensor], seeds: Tensor | None, draw: torch.Generator | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for indices, images in zip(order, self._decoded(order, seeds), strict=True):
            if isinstance(images, str):
                raise ZtwError(images)
            images = images.to(self.device, non_blocking=True)
            if draw is not None and self.colour_jitter:
                images = jitter_colours(images, self.colour_jitter, self.jitter_order, draw)
            yield normalise(images, self.mean, self.std), self.labels[indices.to(self.device)]

    def _decoded(self, order: list[Tensor], seeds: Tensor | None) -> Iterator[Tensor | str]:
        requests = (
            [(str(self.path(i)), None if seeds is None else int(seeds[i])) for i in indices.tolist()]
            for indices in order
        )
        workers = torch.get_num_threads() if self.workers is None else self.workers
        with warnings.catch_warnings():
            # Torch warns of fork in a process with threads (workers start none), and of more workers than cores
            warnings.simplefilter("ignore")
            loader = iter(
                DataLoader(
                    _Decoder(self.size, self.flip),
                    batch_size=None,
                    sampler=requests,
                    num_workers=workers,
                    pin_memory=self.device.type == "cuda",
                    generator=torch.Generator(),  # without it, the loader draws from the global generator
                    # Other start methods import the main script again and so run the job again
                    multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
                )
            )
        try:
            yield from loader
        except RuntimeError as error:
            raise ZtwError(
                f"{self.folder}: a worker process failed ({' '.join(str(error).split())[:200]}); it may lack"
                " memory or shared memory; use fewer workers, or 0"
            ) from error


class _Decoder(Dataset):
    """Decode a batch [(path, seed)] in a worker; return uint8 (B, 3, size, size), or the text of an error."""

    def __init__(self, size: int, flip: bool) -> None:
        self.size, self.flip = size, flip

    def __getitem__(self, request: list[tuple[str, int | None]]) -> Tensor | str:
        try:
            return torch.stack([self._image(path, seed) for path, seed in request])
        except ZtwError as error:  # a loader adds the traceback to the text of an exception
            return str(error)

    def _image(self, path: str, seed: int | None) -> Tensor:
        image = read_rgb(Path(path), path)
        if seed is None:
            image = centre_crop(image, self.size)
        else:
            image = random_resized_crop(image, self.size, self.flip, seed)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to size * 256 / 224 pixels and crop the centre."""
    from torchvision.transforms import functional

    return functional.center_crop(functional.resize(image, round(size * 256 / 224)), size)


def random_resized_crop(image: Image.Image, size: int, flip: bool, seed: int) -> Image.Image:
    """Crop a random part and resize it to (size, size) pixels; if `flip`, flip it with probability 1/2."""
    box, mirrored = _draw(image, seed)
    image = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and mirrored else image


def _draw(image: Image.Image, seed: int) -> tuple[tuple[int, int, int, int], bool]:
    """Draw a box (left, top, right, bottom) of 8 to 100 % of the area, aspect 3:4 to 4:3, and a flip."""
    from torchvision.transforms import RandomResizedCrop

    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        return (left, top, left + width, top + height), bool(torch.rand(()) < 0.5)
